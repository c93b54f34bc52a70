"""Whether a release serves: each model is listed, each other path answers. What `helm test` runs, and the load test waits for.

    check_service.py --service=http://NAME-serve-svc:8000 --model=/=smollm2 --answers=/nightjar/health --timeout-s=300

Asks again until all is well. Exit code 1, with what is missing, once the time is over. Models are shown the key in OPENAI_API_KEY,
where there is one. Standard library only: it travels as text.
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request

PERIOD_S = 2.0
API_KEY_VARIABLE = "OPENAI_API_KEY"
UNAUTHORIZED = 401


def main() -> int:
    """Wait for the service; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--service", required=True)
    parser.add_argument("--model", action="append", default=[], help="ROUTE_PREFIX=MODEL_ID")
    parser.add_argument("--answers", action="append", default=["/-/healthz"], help="a path that must answer 200")
    parser.add_argument("--timeout-s", type=float, required=True)
    options = parser.parse_args()
    ends = time.monotonic() + options.timeout_s
    api_key = os.environ.get(API_KEY_VARIABLE, "").strip()
    while missing := what_is_missing(options.service, options.model, options.answers, api_key):
        print("; ".join(missing), flush=True)
        if time.monotonic() > ends:
            return 1
        time.sleep(PERIOD_S)
    print("serves", flush=True)
    return 0


def what_is_missing(service: str, models: list[str], paths: list[str], api_key: str) -> list[str]:
    """One sentence for each thing that is not there."""
    missing = [problem for path in paths if (problem := answer(service + path)[1])]
    for model in models:
        prefix, _, model_id = model.partition("=")
        url = service + prefix.rstrip("/") + "/v1/models"
        body, problem = answer(url, api_key)
        if problem:
            missing.append(problem)
        elif model_id not in listed(body):
            missing.append(f"{url} does not list {model_id}")
    return missing


def answer(url: str, api_key: str = "") -> tuple[bytes, str]:
    """The body and an empty text, or what went wrong."""
    request = urllib.request.Request(url)  # noqa: S310 - the chart writes the address
    if api_key:
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return response.read(), ""
    except urllib.error.HTTPError as error:
        asks = f"; the key in {API_KEY_VARIABLE} is {'wrong' if api_key else 'missing'}: see loadTest.existingSecret"
        return b"", f"{url}: {error}{asks if error.code == UNAUTHORIZED else ''}"
    except OSError as error:
        return b"", f"{url}: {error}"


def listed(body: bytes) -> list[str]:
    """The ids in an answer of /v1/models; none where it is something else."""
    try:
        return [model["id"] for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


if __name__ == "__main__":
    sys.exit(main())
