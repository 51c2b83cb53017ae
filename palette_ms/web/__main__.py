"""python -m palette_ms.web: a page in the browser to restore pictures in, served on this machine.

It reads no path that a browser names, only what is uploaded, and asks nothing of the network.
"""

import argparse
import os
import socket
import tempfile
from pathlib import Path

from palette_ms import errors
from palette_ms.errors import UserError
from palette_ms.tasks.imports import add_import

# The browser may load nothing from elsewhere; Gradio's own pages need inline scripts, and eval for their templates.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
          "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
          "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; frame-ancestors 'self'")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main():
    parser = argparse.ArgumentParser(prog="python -m palette_ms.web", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--ckpt", nargs="+", default=["photo"], metavar="FILE",
                        help="models to choose among, one in memory at a time (default: photo, the one that ships)")
    add_import(parser)
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to serve on (default: 127.0.0.1, for this machine alone; there is no login)")
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free (default: 7860)")
    parser.add_argument("--max-mb", type=_above_0, default=64, help="of an uploaded file (default: 64)")
    parser.add_argument("--max-megapixels", type=_above_0, default=50, help="of an uploaded picture (default: 50)")
    parser.add_argument("--max-files", type=_above_0, default=100, help="restored at once (default: 100)")
    parser.add_argument("--max-line", type=_above_0, default=20, help="pictures in line, of all users (default: 20)")
    parser.add_argument("--max-memory", metavar="SIZE", help="as of python -m palette_ms.sample")
    parser.add_argument("--device", default="auto", help="auto (default), Ascend, GPU or CPU")
    parser.add_argument("--runtime", default="auto", help="of the network, as of python -m palette_ms.sample")
    parser.add_argument("--precision", default="auto", help="of the network, as of python -m palette_ms.sample")
    parser.add_argument("--jit-level", choices=("O0", "O1"), help="of MindSpore's compiler, as there")
    args = parser.parse_args()
    if args.max_memory is not None:
        os.environ["PALETTE_MS_MAX_MEMORY"] = args.max_memory or "nothing"

    with tempfile.TemporaryDirectory(prefix="palette_ms_web_") as folder:
        # What Gradio reads when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise UserError("the page is made with Gradio, which is not installed: pip install 'palette_ms[web]'") \
                from None

        serve(args, Path(folder))


def serve(args, folder):
    """Serve the page until the process is told to end."""
    import uvicorn
    from PIL import Image

    from palette_ms import runtime
    from palette_ms.pipeline import Palette
    from palette_ms.web.page import Page
    from palette_ms.web.work import Line, Models

    runtime.max_memory()
    models = Models(args.ckpt, lambda path: Palette.load(path, args.device, args.runtime, args.precision,
                                                            args.jit_level))
    # For what Gradio itself opens. Pillow refuses twice as many as this.
    Image.MAX_IMAGE_PIXELS = int(1e6 * args.max_megapixels) // 2
    try:
        listening = socket.create_server((args.host, args.port),
                                         family=socket.AF_INET6 if ":" in args.host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot serve on {args.host}, port {args.port}: {getattr(error, 'strerror', None) or error}; "
                        "--host and --port name others") from None
    line = Line(args.max_line)
    line.add(lambda job: models.get(next(iter(models.tasks))))  # while the first user looks for a picture
    page = Page(models, line, folder, args.max_megapixels, args.max_files)
    server = uvicorn.Server(uvicorn.Config(app(page, args), log_level="warning", timeout_graceful_shutdown=1))
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{host}:{listening.getsockname()[1]}/ has the page; Ctrl-C ends it", flush=True)
    try:
        server.run([listening])
    finally:
        line.close()


def app(page, args):
    """The page as an ASGI application that bounds what comes in and where from."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from palette_ms.web.page import CSS

    served = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if args.host in LOOPBACK:  # else a page from elsewhere could reach this one under a name of its own
        served.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])
    served.add_middleware(Headers)
    system = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    blocks = page.blocks()
    # Gradio takes what is not launched, as a page mounted like this, for one still being built, and then lets a browser
    # name any file of the machine: that an upload is one it checks from here on.
    blocks.has_launched = True
    return gr.mount_gradio_app(served, blocks, "/", footer_links=[], show_error=True, ssr_mode=False,
                               run_history=False, mcp_server=False, enable_monitoring=False, css=CSS,
                               max_file_size=1_000_000 * args.max_mb, theme=gr.themes.Default(**_fonts(gr, system)))


def _fonts(gr, names):
    return {key: [gr.themes.Font(name) for name in fonts] for key, fonts in names.items()}


class Headers:
    """Adds `POLICY` to what an ASGI application answers."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def answer(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode()),
                                      (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self.app(scope, receive, answer)


def _above_0(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


if __name__ == "__main__":
    errors.run(main)
