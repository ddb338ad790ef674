"""``python -m vqstack``, which ``accelerate launch -m vqstack`` starts in several processes."""

from vqstack.commands import main

if __name__ == "__main__":
    main()
