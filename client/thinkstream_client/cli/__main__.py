"""``python -m thinkstream_client.cli``: the command line where no script is installed."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    main()
