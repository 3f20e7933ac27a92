"""Stands in for a runtime's server where what is tested is how one ends or misbehaves, which a real one does not do on
demand: it answers /health, /metrics and completions, and `--how` says what goes wrong.

Run as `python stand_in_server.py --port PORT [--how fine|refuses|dies|never-starts|never-healthy]`. It starts a process
of its own, as vLLM does, so that tests see whether that ends, too, and prints both ids.
"""

import argparse
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METRICS = """\
# HELP vllm:spec_decode_num_drafts_total drafts
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0"} 3.0
vllm:spec_decode_num_drafts_total{engine="1"} 4.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 28.0
llamacpp:spec_decode_num_accepted_tokens_total 21
"""


def handler(how: str) -> type[BaseHTTPRequestHandler]:
    """Return what answers requests, in the way of `how`."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            healthy = how != "never-healthy" or self.path != "/health"
            self._answer(200 if healthy else 503, METRICS if self.path == "/metrics" else "ok")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if how == "dies":
                print("out of memory, says the server", flush=True)
                os.kill(os.getpid(), 9)
            if how == "refuses":
                return self._answer(400, "the prompt is too long")
            self._answer(200, json.dumps({"choices": [{"text": f"{body['max_tokens']} tokens"}]}))

        def _answer(self, code: int, text: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    return Answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--how", default="fine")
    options = parser.parse_args()
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(os.getpid(), helper.pid, flush=True)
    if options.how == "never-starts":
        sys.exit("error: unknown model architecture: 'of the tests'")
    ThreadingHTTPServer(("127.0.0.1", options.port), handler(options.how)).serve_forever()


if __name__ == "__main__":
    main()
