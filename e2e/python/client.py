"""A client of Claviger that is not ours: grpcio, generated from the .proto alone.

Tells a Key Connector's whole story against a running daemon: read, wrap, unwrap, rewrap where it is
granted, health. Prints one JSON object with what it saw; the exit code is 0 if all of it was right,
else 1.
"""

import argparse
import hashlib
import importlib
import json
import os
import pathlib
import sys
import tempfile

import grpc
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_tools import protoc

DEADLINE_S = 20
OAEP_HASHES = {
    "RSA-OAEP": hashes.SHA1,
    "RSA-OAEP-256": hashes.SHA256,
    "RSA-OAEP-384": hashes.SHA384,
    "RSA-OAEP-512": hashes.SHA512,
}


class Wrong(Exception):
    """The daemon did something other than the contract says."""


def check(truth, what):
    if not truth:
        raise Wrong(what)


def main():
    arguments = parse_arguments()
    seen = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            messages, services = generate(arguments.proto_root, folder)
            with connect(arguments) as channel:
                tell(services.KeyServiceStub(channel), messages, arguments, seen)
                health(health_pb2_grpc.HealthStub(channel), arguments.key, seen)
    except Wrong as wrong:
        seen["wrong"] = str(wrong)
    except grpc.RpcError as error:
        seen["wrong"] = f"{error.code()}: {error.details()}"
    print(json.dumps(seen, indent=2))
    return 1 if "wrong" in seen else 0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proto-root", required=True, type=pathlib.Path)
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--ca", required=True, type=pathlib.Path)
    parser.add_argument("--certificate", required=True, type=pathlib.Path)
    parser.add_argument("--private-key", required=True, type=pathlib.Path)
    parser.add_argument("--key", required=True, help="the key's name")
    return parser.parse_args()


def generate(proto_root, folder):
    """Compiles the contract as any Python project would; gives its messages and services."""
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={proto_root}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            "claviger/v1/claviger.proto",
        ]
    )
    check(status == 0, "the .proto does not compile")
    sys.path.insert(0, folder)
    return (
        importlib.import_module("claviger.v1.claviger_pb2"),
        importlib.import_module("claviger.v1.claviger_pb2_grpc"),
    )


def connect(arguments):
    credentials = grpc.ssl_channel_credentials(
        root_certificates=arguments.ca.read_bytes(),
        private_key=arguments.private_key.read_bytes(),
        certificate_chain=arguments.certificate.read_bytes(),
    )
    return grpc.secure_channel(arguments.address, credentials)


def tell(service, messages, arguments, seen):
    name = arguments.key

    listed = call(service.ListKeys, messages.ListKeysRequest()).keys
    seen["listed"] = [key.name for key in listed]
    check(name in seen["listed"], f"ListKeys does not show {name}")
    key = call(service.GetKey, messages.GetKeyRequest(key=name)).key
    check(key in listed, "GetKey and ListKeys differ")
    version = key.versions[0]
    seen["operations"] = list(key.operations)
    seen["algorithms"] = list(version.algorithms)
    seen["modulus_bits"] = version.modulus_bits
    digest = hashlib.sha256(version.public_key).digest()
    check(digest == version.public_key_sha256, "public_key_sha256 is not that of public_key")

    material = os.urandom(32)
    wrapped = call(service.Wrap, messages.WrapRequest(key=name, key_material=material))
    check(len(wrapped.wrapped) * 8 == version.modulus_bits, "wrapped is not as long as the modulus")
    check(wrapped.key_version == version.version, "Wrap did not take the newest version")
    check(wrapped.algorithm == version.algorithms[0], "Wrap did not take the first algorithm")

    # A Key Connector stores the value alone: no version, no algorithm.
    request = messages.UnwrapRequest(key=name, wrapped=wrapped.wrapped)
    unwrapped, answer = service.Unwrap.with_call(request, timeout=DEADLINE_S)
    check(unwrapped.key_material == material, "Unwrap gave other bytes")
    metadata = dict(answer.initial_metadata()) | dict(answer.trailing_metadata())
    seen["request_id"] = metadata.get("x-request-id")
    check(seen["request_id"], "no x-request-id in the metadata")

    public_key = serialization.load_der_public_key(version.public_key)
    for algorithm in version.algorithms:
        request = messages.UnwrapRequest(
            key=name,
            wrapped=public_key.encrypt(material, padding_of(algorithm)),
            key_version=version.version,
            algorithm=algorithm,
        )
        unwrapped = call(service.Unwrap, request)
        check(unwrapped.key_material == material, f"{algorithm}: Unwrap gave other bytes")
    seen["unwrapped_what_python_wrapped"] = list(version.algorithms)

    items = [messages.UnwrapRequest(key=name, wrapped=wrapped.wrapped) for _ in range(3)]
    batch = call(service.UnwrapBatch, messages.UnwrapBatchRequest(items=items)).results
    check(
        [result.unwrapped.key_material for result in batch] == [material] * 3,
        "UnwrapBatch gave other bytes",
    )

    if "rewrap" in key.operations:
        seen["rewrapped_to"] = rewrap(service, messages, key, wrapped.wrapped, material)

    # The top bit off keeps the value below the modulus; the last bit flipped makes it wrong.
    bad = bytes([wrapped.wrapped[0] & 0x7F]) + wrapped.wrapped[1:-1]
    bad += bytes([wrapped.wrapped[-1] ^ 1])
    expect(grpc.StatusCode.INVALID_ARGUMENT, service.Unwrap, messages.UnwrapRequest(key=name, wrapped=bad))
    unknown = messages.UnwrapRequest(key="no-such-key", wrapped=wrapped.wrapped)
    expect(grpc.StatusCode.PERMISSION_DENIED, service.Unwrap, unknown)


def rewrap(service, messages, key, wrapped, material):
    """To the key itself and to a key pair of Python's own; the material is seen in the end only."""
    source = messages.RewrapSource(key=key.name, key_version=key.versions[0].version)
    target = messages.RewrapTarget(key=key.name)
    request = messages.RewrapRequest(source=source, wrapped=wrapped, target=target)
    again = call(service.Rewrap, request)
    check(again.wrapped != wrapped, "Rewrap gave the value back")
    check(again.target_public_key_sha256 == key.versions[0].public_key_sha256, "another target")
    unwrapped = call(service.Unwrap, messages.UnwrapRequest(key=key.name, wrapped=again.wrapped))
    check(unwrapped.key_material == material, "Rewrap gave other bytes")

    device = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public_key = device.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    target = messages.RewrapTarget(public_key=public_key, algorithm="RSA-OAEP-384", label=b"device")
    request = messages.RewrapRequest(
        source=source, wrapped=wrapped, target=target, max_key_material_len=len(material)
    )
    [result] = call(service.RewrapBatch, messages.RewrapBatchRequest(items=[request])).results
    check(result.WhichOneof("result") == "rewrapped", f"RewrapBatch failed: {result.error}")
    sha384 = hashes.SHA384()
    oaep = padding.OAEP(mgf=padding.MGF1(sha384), algorithm=sha384, label=b"device")
    check(device.decrypt(result.rewrapped.wrapped, oaep) == material, "the device read other bytes")
    check(
        result.rewrapped.target_public_key_sha256 == hashlib.sha256(public_key).digest(),
        "another device",
    )
    return ["key", "public key"]


def health(service, name, seen):
    serving = health_pb2.HealthCheckResponse.SERVING
    for subject in ("", f"claviger.v1.KeyService/{name}"):
        status = call(service.Check, health_pb2.HealthCheckRequest(service=subject)).status
        check(status == serving, f"health of {subject!r} is {status}")
    unknown = health_pb2.HealthCheckRequest(service="claviger.v1.KeyService/no-such-key")
    expect(grpc.StatusCode.NOT_FOUND, service.Check, unknown)
    seen["health"] = "SERVING"


def padding_of(algorithm):
    if algorithm == "RSA1_5":
        return padding.PKCS1v15()
    digest = OAEP_HASHES[algorithm]
    return padding.OAEP(mgf=padding.MGF1(digest()), algorithm=digest(), label=None)


def call(method, request):
    return method(request, timeout=DEADLINE_S)


def expect(code, method, request):
    try:
        method(request, timeout=DEADLINE_S)
    except grpc.RpcError as error:
        check(error.code() == code, f"expected {code}, got {error.code()}: {error.details()}")
        return
    raise Wrong(f"expected {code}, got success")


if __name__ == "__main__":
    sys.exit(main())
