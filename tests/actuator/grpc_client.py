"""A client of gRPC's own xds:///: `python -m tests.actuator.grpc_client TARGET`, with GRPC_XDS_BOOTSTRAP_CONFIG in its environment.

For each line "COUNT" on its standard input it makes so many calls, and prints how many were answered by whom, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import grpc


def main(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary("/test.Who/Are", request_serializer=bytes, response_deserializer=bytes.decode)
        for line in sys.stdin:
            answers = Counter[str]()
            for _ in range(int(line)):
                try:
                    answers[call(b"", timeout=20, wait_for_ready=True)] += 1
                except grpc.RpcError as error:
                    answers[error.code().name] += 1
            print(json.dumps(answers), flush=True)


main(sys.argv[1])
