"""Microsoft's own SDK against the fake: create, import, list, wrap, sign, rotate, disabled, errors.

Reads the fake's line of JSON from stdin and prints what it saw as JSON.
"""

import json
import os
import sys
import tempfile
from datetime import datetime, timedelta, timezone

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import JsonWebKey, KeyClient
from azure.keyvault.keys.crypto import (
    CryptographyClient,
    EncryptionAlgorithm,
    KeyWrapAlgorithm,
    SignatureAlgorithm,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

fake = json.loads(sys.stdin.readline())
seen = {}

with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
    file.write(fake["ca_pem"])
transport = {"connection_verify": file.name, "retry_total": 0}


def credential(secret):
    return ClientSecretCredential(
        fake["tenant"],
        fake["client_id"],
        secret,
        authority=fake["origin"],
        disable_instance_discovery=True,
        **transport,
    )


def client(credential):
    # The fake has no name below vault.azure.net, of which the challenge speaks.
    return KeyClient(fake["origin"], credential, verify_challenge_resource=False, **transport)


def remote(key_id):
    """A client that has only the identifier, so that it cannot do anything on its own."""
    return CryptographyClient(
        key_id, entra, verify_challenge_resource=False, **transport
    )


def public_key(key):
    number = lambda field: int.from_bytes(field, "big")
    return rsa.RSAPublicNumbers(number(key.key.e), number(key.key.n)).public_key()


def refusal(action):
    """What the service says when it refuses: status, code, inner code, message."""
    try:
        action()
    except HttpResponseError as error:
        body = json.loads(error.response.text())["error"]
        inner = body.get("innererror", {}).get("code")
        return [error.status_code, body["code"], inner, body["message"]]
    raise AssertionError("it was not refused")


entra = credential(fake["client_secret"])
keys = client(entra)

# Create, in every size; a request id comes with each answer.
for bits in (2048, 3072, 4096):
    made = keys.create_rsa_key(f"made-{bits}", size=bits, tags={"bits": str(bits)})
    assert made.key.n[0] != 0 and len(made.key.n) * 8 == bits, made.key.n
    assert made.properties.enabled and made.properties.tags == {"bits": str(bits)}
    assert len(made.properties.version) == 32
made = keys.get_key("made-2048")
ids = []
keys.get_key("made-2048", raw_response_hook=lambda r: ids.append(r.http_response.headers["x-ms-request-id"]))
assert len(ids[0]) == 36, ids

# What is made outside unwraps inside, and what the service makes it takes back.
outside = {
    "RSA-OAEP": padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None),
    "RSA-OAEP-256": padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None),
    "RSA1_5": padding.PKCS1v15(),
}
material = os.urandom(32)
worker = remote(made.id)
for name, scheme in outside.items():
    wrapped = public_key(made).encrypt(material, scheme)
    assert worker.unwrap_key(KeyWrapAlgorithm(name), wrapped).key == material
    assert worker.decrypt(EncryptionAlgorithm(name), wrapped).plaintext == material
    wrapped = worker.wrap_key(KeyWrapAlgorithm(name), material).encrypted_key
    assert worker.unwrap_key(KeyWrapAlgorithm(name), wrapped).key == material
    ciphertext = worker.encrypt(EncryptionAlgorithm(name), material).ciphertext
    assert worker.decrypt(EncryptionAlgorithm(name), ciphertext).plaintext == material
seen["unwrapped"] = list(outside)

# Signatures verify outside.
signed = []
for algorithm in SignatureAlgorithm:
    if algorithm.value[:2] not in ("RS", "PS"):
        continue
    hash = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[algorithm.value[2:]]
    digest = os.urandom(hash.digest_size)
    scheme = (
        padding.PKCS1v15()
        if algorithm.value.startswith("RS")
        else padding.PSS(padding.MGF1(hash), hash.digest_size)
    )
    signature = worker.sign(algorithm, digest).signature
    public_key(made).verify(signature, digest, scheme, utils.Prehashed(hash))
    assert worker.verify(algorithm, digest, signature).is_valid
    assert not worker.verify(algorithm, os.urandom(hash.digest_size), signature).is_valid
    signed.append(algorithm.value)
seen["signed"] = sorted(signed)

# Import: a key that was made outside keeps its numbers and its private half.
own = rsa.generate_private_key(65537, 3072)
numbers = own.private_numbers()
data = lambda number: number.to_bytes((number.bit_length() + 7) // 8, "big")
jwk = JsonWebKey(
    kty="RSA",
    key_ops=["unwrapKey", "wrapKey"],
    n=data(numbers.public_numbers.n),
    e=data(numbers.public_numbers.e),
    d=data(numbers.d),
    p=data(numbers.p),
    q=data(numbers.q),
    dp=data(numbers.dmp1),
    dq=data(numbers.dmq1),
    qi=data(numbers.iqmp),
)
imported = keys.import_key("imported", jwk)
assert public_key(imported).public_numbers() == own.public_key().public_numbers()
wrapped = own.public_key().encrypt(material, outside["RSA-OAEP-256"])
assert remote(imported.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped).key == material
seen["imported_bits"] = own.key_size
seen["not_in_key_ops"] = refusal(lambda: remote(imported.id).sign(SignatureAlgorithm.rs256, bytes(32)))

# Rotation: the latest is new, the old version serves on by its identifier.
rotated = keys.rotate_key("made-2048")
assert rotated.properties.version != made.properties.version
assert keys.get_key("made-2048").id == rotated.id
assert keys.get_key("made-2048", made.properties.version).key.n == made.key.n
wrapped = public_key(made).encrypt(material, outside["RSA-OAEP"])
assert worker.unwrap_key(KeyWrapAlgorithm.rsa_oaep, wrapped).key == material
seen["wrong_version"] = refusal(lambda: remote(rotated.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep, wrapped))

# Lists have pages; nothing is lost or doubled between them.
for _ in range(30):
    keys.rotate_key("made-2048")
versions = [version.version for version in keys.list_properties_of_key_versions("made-2048")]
assert len(versions) == len(set(versions)) == 32, len(versions)
pages = keys.list_properties_of_key_versions("made-2048", max_page_size=10).by_page()
seen["pages"] = [len(list(page)) for page in pages]
seen["names"] = sorted(properties.name for properties in keys.list_properties_of_keys())

# Disabled, and out of its time.
keys.update_key_properties("made-2048", made.properties.version, enabled=False)
unwrap = lambda: worker.unwrap_key(KeyWrapAlgorithm.rsa_oaep, wrapped)
seen["disabled_unwrap"] = refusal(unwrap)
seen["disabled_sign"] = refusal(lambda: remote(made.id).sign(SignatureAlgorithm.ps256, bytes(32)))
assert remote(made.id).wrap_key(KeyWrapAlgorithm.rsa_oaep, material).encrypted_key
keys.update_key_properties("made-2048", made.properties.version, enabled=True)
assert unwrap().key == material
past = datetime.now(timezone.utc) - timedelta(days=1)
expired = keys.create_rsa_key("expired", expires_on=past)
wrapped = public_key(expired).encrypt(material, outside["RSA-OAEP"])
assert remote(expired.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep, wrapped).key == material
seen["expired_sign"] = refusal(lambda: remote(expired.id).sign(SignatureAlgorithm.rs256, bytes(32)))

# Errors.
flipped = bytearray(wrapped)
flipped[100] ^= 1
seen["flipped"] = refusal(lambda: remote(expired.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep, bytes(flipped)))
seen["short"] = refusal(lambda: remote(expired.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep, b"short"))
try:
    keys.get_key("no-such-key")
except ResourceNotFoundError as error:
    seen["missing"] = [error.status_code, error.error.code]
seen["missing_version"] = refusal(lambda: keys.get_key("made-2048", "0" * 32))[:2]
try:
    client(credential("wrong-secret")).get_key("made-2048")
except ClientAuthenticationError as error:
    seen["wrong_secret"] = "AADSTS7000215" in str(error)

os.unlink(file.name)
print(json.dumps(seen))
