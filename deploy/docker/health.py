"""Ask a coordinator's health port whether it serves: `python health.py [HOST:PORT]` ends with status 0 if it does.

For container probes; a plain grpc.health.v1 client, without anything of Koinon's.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PORT = 8442
_PATIENCE = 3.0


def main(address: str = f"127.0.0.1:{PORT}") -> int:
    try:
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE)
    except grpc.RpcError as error:
        print(f"{address} does not answer: {error.code().name}", file=sys.stderr)
        return 1
    said = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(said)
    return 0 if said == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
