"""Wraps 32 random bytes with Claviger and unwraps them again.

python client.py HOST:PORT KEY CA CERTIFICATE PRIVATE_KEY
python client.py unix:/run/claviger/claviger.sock KEY
"""

import os
import pathlib
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. claviger/v1/claviger.proto
from claviger.v1 import claviger_pb2 as messages
from claviger.v1 import claviger_pb2_grpc as services

DEADLINE_S = 10
SERVICE_CONFIG = pathlib.Path(__file__).parent.parent / "service-config.json"


def connect(target, ca=None, certificate=None, private_key=None):
    options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
    if target.startswith("unix:"):
        # Else gRPC's C core sends the path of the socket as the name of the host.
        options.append(("grpc.default_authority", "localhost"))
        return grpc.insecure_channel(target, options)
    read = lambda file: pathlib.Path(file).read_bytes()
    credentials = grpc.ssl_channel_credentials(read(ca), read(private_key), read(certificate))
    return grpc.secure_channel(target, credentials, options)


def explain(error):
    """What the details of a status say: the field that is wrong, when to try again."""
    said = [f"{error.code().name}: {error.details()}"]
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad):
            said += [f"field {v.field}: {v.description}" for v in bad.field_violations]
        elif detail.Unpack(retry):
            said.append(f"try again in {retry.retry_delay.ToMilliseconds()} ms")
    return "; ".join(said)


def main(target, key, *files):
    material = os.urandom(32)
    with connect(target, *files) as channel:
        keys = services.KeyServiceStub(channel)
        # Your own id is recorded beside the daemon's.
        mine = [("x-request-id", "order-66")]
        try:
            request = messages.WrapRequest(key=key, key_material=material)
            wrapped = keys.Wrap(request, timeout=DEADLINE_S, metadata=mine).wrapped
            request = messages.UnwrapRequest(key=key, wrapped=wrapped)
            unwrapped, call = keys.Unwrap.with_call(request, timeout=DEADLINE_S, metadata=mine)
        except grpc.RpcError as error:
            sys.exit(explain(error))
        assert unwrapped.key_material == material
        request_id = dict(call.initial_metadata())["x-request-id"]
        print(f"unwrapped {len(unwrapped.key_material)} bytes, request id {request_id}")


if __name__ == "__main__":
    main(*sys.argv[1:])
