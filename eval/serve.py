"""Serve models over HTTP: a page to talk to them in a browser, and the endpoints that OpenAI's clients speak."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import re
import socket
from contextlib import suppress
from types import FrameType

import uvicorn

from eval.common.open_model import prepared_world
from eval.common.options import add_model_options
from eval.serving.api import API
from eval.serving.batching import Batcher
from eval.serving.models import Catalog
from prepare.common.cli import RUNS, ArgumentError, Parser, UserError, nonempty, nonempty_path


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Talk to the models under runs/ in a browser, and serve them to OpenAI's clients (docs/serve.md).",
        "python eval/serve.py --model runs/quickstart",
    )
    add_model_options(parser)
    parser.add_argument("--runs", type=nonempty_path, default=RUNS, metavar="DIR", help="the runs that can be chosen")
    parser.add_argument("--host", type=nonempty, default="127.0.0.1", metavar="H", help="the address to listen on")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any free one")
    parser.add_argument("--token", type=nonempty, metavar="T", help="the API key; needed if others can reach the host")
    args = parser.parse_args(argv)

    listener = listen(args.host, args.port, args.token)
    with listener, prepared_world(args.device) as world:
        catalog = Catalog(args.runs, args.model)
        batcher = Batcher(world.device)
        if args.model:
            batcher.open(catalog.find(args.model))
        batcher.start()
        app = API(catalog, batcher, args.host, args.token).app
        config = uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", timeout_graceful_shutdown=3)
        server = uvicorn.Server(config)  # which waits 3 s for open streams to close

        def handle_exit(sig: int, frame: FrameType | None) -> None:
            batcher.close()  # ends all generation, so that they close
            uvicorn.Server.handle_exit(server, sig, frame)

        server.handle_exit = handle_exit
        address = f"http://{args.host}:{listener.getsockname()[1]}"
        print(f"{address} serves {len(catalog.models())} models: open it in a browser; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):  # raised again after a clean shutdown
            server.run([listener])


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A socket that listens. UserError if the address is taken or is not one, ArgumentError for the token."""
    if not re.fullmatch("[!-~]*", token or ""):
        raise ArgumentError("--token: give ASCII letters, digits and punctuation, which every client can send")
    if not token and host not in ("127.0.0.1", "localhost"):
        raise ArgumentError(f"--host {host} can be reached from other machines: give a --token that clients send")
    try:
        return socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError) as failure:
        raise UserError(f"--host {host} --port {port}: {failure}: choose others") from None
