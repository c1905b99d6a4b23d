"""A real language-model server for tests: `transformers serve` with the tiny base, on loopback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from medley.collections import BUNDLED

needs_serving = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")),
    reason="`transformers serve` needs fastapi and uvicorn: pip install 'transformers[serving]'",
)


def make_chatty(folder: Path) -> Path:
    """The tiny base with a chat template, which its own folder has not."""
    shutil.copytree(BUNDLED / "tiny", folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    return folder


@contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """The address of a server that has started to answer; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = model.parent / "serve.log"
    command = [Path(sys.executable).with_name("transformers"), "serve", model, "--host", "127.0.0.1"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=output, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )  # fmt: skip
    try:
        for _ in range(240):
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as health:
                    if health.status == 200:
                        break
            except OSError:
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait(20)
