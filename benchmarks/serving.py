"""The program of docs/serving.md beside the model alone.

    python benchmarks/serving.py RUN [--clients 8] [--requests 5]

Clients ask over HTTP, side by side, each for 16 samples at a time; who is told that the queue is full asks again. The
model draws the same samples by itself, half of them before and half after. Prints images a second of both, how long an
answered request took, how many were turned away at once, and whether every sample is the same to the byte.
"""

import argparse
import io
import re
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import uvicorn

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
NUM = 16

parser = argparse.ArgumentParser()
parser.add_argument("run", type=Path)
parser.add_argument("--clients", type=int, default=8)
parser.add_argument("--requests", type=int, default=5, help="of each client")
asked = parser.parse_args()

(program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
names: dict = {}
exec(program.replace('"runs/digits"', repr(str(asked.run))), names)
listening = socket.create_server(("127.0.0.1", 0))
address = f"http://127.0.0.1:{listening.getsockname()[1]}/sample?num={NUM}&seed="
server = uvicorn.Server(uvicorn.Config(names["app"], log_level="error"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
thread.start()
turned_away = list[float]()


def request(seed: int) -> tuple[float, np.ndarray]:
    """Seconds of the request that was answered, and its images."""
    while True:
        began = time.perf_counter()
        try:
            with urlopen(address + str(seed)) as answer:
                return time.perf_counter() - began, np.load(io.BytesIO(answer.read()))
        except HTTPError as error:
            if error.code != 503:
                raise
            turned_away.append(time.perf_counter() - began)
            time.sleep(0.5)


def alone(seeds: range) -> tuple[float, list[np.ndarray]]:
    """Seconds of the model itself, and its images."""
    began = time.perf_counter()
    images = [names["model"].sample(NUM, seed=seed).pixels.numpy() for seed in seeds]
    return time.perf_counter() - began, images


count = asked.clients * asked.requests
request(0)  # warms up
first, before = alone(range(count // 2))
began = time.perf_counter()
with ThreadPoolExecutor(asked.clients) as clients:
    answers = list(clients.map(request, range(count)))
served = time.perf_counter() - began
second, after = alone(range(count // 2, count))
server.should_exit = True
thread.join()
drawn, wanted = first + second, before + after
ours, theirs = count * NUM / served, count * NUM / drawn
print(f"served {ours:,.0f} images/s, the model alone {theirs:,.0f}: {ours / theirs:.2f} of it")
print(f"a request took {statistics.median(took for took, _ in answers):.2f} s, the median of {count}")
slowest = f", in {max(turned_away):.3f} s at most" if turned_away else ""
print(f"turned away at once: {len(turned_away)}{slowest}")
equal = all(np.array_equal(images, other) for (_, images), other in zip(answers, wanted, strict=True))
print(f"equal to the byte: {equal}")
