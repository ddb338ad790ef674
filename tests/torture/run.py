"""Break everything that promises not to break: python tests/torture/run.py [PART …] [--short] [--out FILE].

Parts: kills, writes, cuts, damage, mutants, memory; all of them by default. Prints one line for each and every
failure, and leaves with 1 if there are any. ``--out`` receives the counts, and the damaged files go into ``damage.md``
beside it; parts that were not run keep what was there.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

PARTS = ["kills", "writes", "cuts", "damage", "mutants", "memory"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--short", action="store_true", help="some four minutes instead of half an hour")
    parser.add_argument("--out", type=Path, help="JSON file that receives the counts")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder")
    arguments = parser.parse_args()
    for name in arguments.parts:
        if name not in PARTS:
            parser.error(f"no part {name}: {', '.join(PARTS)}")
    scratch = Path(tempfile.mkdtemp(prefix="vqstack-torture-"))
    report = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    failed = 0
    try:
        for name in arguments.parts or PARTS:
            start = time.monotonic()
            result = importlib.import_module(name).part(scratch / name, arguments.short)
            seconds = round(time.monotonic() - start, 1)
            report[name] = {"form": "short" if arguments.short else "full", "seconds": seconds, **result}
            failed += len(result["failures"])
            print(f"{name}: {len(result['failures'])} failures, {seconds} s", flush=True)
            for failure in result["failures"][:20]:
                print(f"  {failure[:1500]}", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    if arguments.out:
        report["machine"] = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
        arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if "damage" in (arguments.parts or PARTS):
            page = importlib.import_module("damage").page(report["damage"])
            (arguments.out.parent / "damage.md").write_text(page, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
