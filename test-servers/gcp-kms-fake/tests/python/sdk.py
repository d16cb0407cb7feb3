"""Google's own Python client against the fake: what it is told here, it must find there.

usage: sdk.py ENDPOINT SERVICE_ACCOUNT EXTERNAL_ACCOUNT EXTERNAL_ACCOUNT_IMPERSONATED

Prints one line for each thing that was shown; anything else than what is expected ends it.
"""

import sys
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from google.api_core import exceptions
from google.auth import credentials as anonymous
from google.auth import exceptions as auth_exceptions
from google.auth import identity_pool
from google.cloud import kms_v1 as kms
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceRestTransport,
)
from google.oauth2 import service_account
from google.protobuf import field_mask_pb2

import crc32c_by_bits as crc

Algorithm = kms.CryptoKeyVersion.CryptoKeyVersionAlgorithm
State = kms.CryptoKeyVersion.CryptoKeyVersionState
Purpose = kms.CryptoKey.CryptoKeyPurpose
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
LOCATION = "projects/fake-project/locations/europe-west3"


def main(endpoint, account, federated, impersonated):
    client = connect(
        endpoint, service_account.Credentials.from_service_account_file(account, scopes=SCOPES)
    )
    ring = client.create_key_ring(parent=LOCATION, key_ring_id="sdk", key_ring=kms.KeyRing())
    expect(ring.name, f"{LOCATION}/keyRings/sdk")
    expect(client.get_key_ring(name=ring.name), ring)
    shown("a service account's JWT gives a token, and a key ring is made")

    decrypts(client, ring.name)
    signs(client, ring.name)
    states(client, ring.name)
    imports(client, ring.name)
    pages(client, ring.name)
    errors(client, ring.name)
    for name, file in (("STS", federated), ("STS with impersonation", impersonated)):
        other = connect(endpoint, identity_pool.Credentials.from_file(file, scopes=SCOPES))
        expect(other.get_key_ring(name=ring.name).name, ring.name)
        shown(f"{name} gives a token")
    nobody = connect(endpoint, anonymous.AnonymousCredentials())
    try:
        nobody.get_key_ring(name=ring.name)
    except auth_exceptions.InvalidOperation as error:
        # It answers 401 with a wish to renew what cannot be renewed.
        assert "cannot be refreshed" in str(error), error
    else:
        raise AssertionError("no token was asked for")
    shown("without a token nothing is given")


def connect(endpoint, credentials):
    return kms.KeyManagementServiceClient(
        transport=KeyManagementServiceRestTransport(
            host=urlsplit(endpoint).netloc, url_scheme="http", credentials=credentials
        )
    )


def make(client, ring, name, purpose, algorithm):
    key = client.create_crypto_key(
        parent=ring,
        crypto_key_id=name,
        crypto_key=kms.CryptoKey(
            purpose=purpose, version_template=kms.CryptoKeyVersionTemplate(algorithm=algorithm)
        ),
    )
    expect(client.get_crypto_key(name=key.name), key)
    return f"{key.name}/cryptoKeyVersions/1"


def public_key(client, version, algorithm):
    answer = client.get_public_key(name=version)
    expect(answer.name, version)
    expect(answer.algorithm, algorithm)
    expect(answer.protection_level, kms.ProtectionLevel.SOFTWARE)
    expect(answer.pem_crc32c, crc.value(answer.pem.encode()))
    return serialization.load_pem_public_key(answer.pem.encode())


def oaep(hash_):
    return padding.OAEP(mgf=padding.MGF1(hash_), algorithm=hash_, label=None)


def decrypts(client, ring):
    for algorithm, bits, hash_ in (
        (Algorithm.RSA_DECRYPT_OAEP_2048_SHA1, 2048, hashes.SHA1()),
        (Algorithm.RSA_DECRYPT_OAEP_2048_SHA256, 2048, hashes.SHA256()),
        (Algorithm.RSA_DECRYPT_OAEP_3072_SHA256, 3072, hashes.SHA256()),
        (Algorithm.RSA_DECRYPT_OAEP_4096_SHA512, 4096, hashes.SHA512()),
    ):
        version = make(client, ring, algorithm.name, Purpose.ASYMMETRIC_DECRYPT, algorithm)
        key = public_key(client, version, algorithm)
        expect(key.key_size, bits)
        ciphertext = key.encrypt(b"key material", oaep(hash_))
        answer = client.asymmetric_decrypt(
            {
                "name": version,
                "ciphertext": ciphertext,
                "ciphertext_crc32c": crc.value(ciphertext),
            }
        )
        expect(answer.plaintext, b"key material")
        expect(answer.plaintext_crc32c, crc.value(b"key material"))
        expect(answer.verified_ciphertext_crc32c, True)
        unverified = client.asymmetric_decrypt(name=version, ciphertext=ciphertext)
        expect(unverified.verified_ciphertext_crc32c, False)
        decrypt = client.asymmetric_decrypt
        other = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
        raises("INVALID_ARGUMENT", "Decryption failed", decrypt, name=version, ciphertext=b"short")
        raises("INVALID_ARGUMENT", "Decryption failed", decrypt, name=version, ciphertext=other)
        raises(
            "INVALID_ARGUMENT",
            "did not match",
            decrypt,
            {"name": version, "ciphertext": other, "ciphertext_crc32c": crc.value(ciphertext)},
        )
        shown(f"{algorithm.name} decrypts")


def signs(client, ring):
    for algorithm, hash_, pss in (
        (Algorithm.RSA_SIGN_PKCS1_2048_SHA256, hashes.SHA256(), False),
        (Algorithm.RSA_SIGN_PSS_2048_SHA256, hashes.SHA256(), True),
        (Algorithm.RSA_SIGN_PSS_4096_SHA512, hashes.SHA512(), True),
    ):
        version = make(client, ring, algorithm.name, Purpose.ASYMMETRIC_SIGN, algorithm)
        key = public_key(client, version, algorithm)
        digest = bytes(range(hash_.digest_size))
        field = hash_.name.replace("-", "")
        answer = client.asymmetric_sign(
            {"name": version, "digest": {field: digest}, "digest_crc32c": crc.value(digest)}
        )
        scheme = padding.PKCS1v15()
        if pss:
            scheme = padding.PSS(mgf=padding.MGF1(hash_), salt_length=hash_.digest_size)
        key.verify(answer.signature, digest, scheme, utils.Prehashed(hash_))
        expect(answer.name, version)
        expect(answer.signature_crc32c, crc.value(answer.signature))
        expect(answer.verified_digest_crc32c, True)
        signed = client.asymmetric_sign({"name": version, "data": b"data"})
        key.verify(signed.signature, b"data", scheme, hash_)
        sign = client.asymmetric_sign
        raises(
            "INVALID_ARGUMENT", "", sign, {"name": version, "digest": {"sha384": digest}}
        )
        raises(
            "INVALID_ARGUMENT",
            "did not match",
            sign,
            {"name": version, "digest": {field: digest}, "digest_crc32c": crc.value(b"other")},
        )
        raises(
            "FAILED_PRECONDITION",
            "purpose",
            client.asymmetric_decrypt,
            name=version,
            ciphertext=b"x",
        )
        shown(f"{algorithm.name} signs")


def states(client, ring):
    algorithm = Algorithm.RSA_DECRYPT_OAEP_2048_SHA256
    first = make(client, ring, "states", Purpose.ASYMMETRIC_DECRYPT, algorithm)
    key = first.rsplit("/cryptoKeyVersions/", 1)[0]
    made = client.create_crypto_key_version(
        parent=key, crypto_key_version=kms.CryptoKeyVersion()
    )
    expect((made.name, made.state), (f"{key}/cryptoKeyVersions/2", State.PENDING_GENERATION))
    found = client.get_crypto_key_version(name=made.name)
    expect((found.state, found.algorithm), (State.ENABLED, algorithm))

    def update(state):
        return client.update_crypto_key_version(
            crypto_key_version=kms.CryptoKeyVersion(name=made.name, state=state),
            update_mask=field_mask_pb2.FieldMask(paths=["state"]),
        ).state

    expect(update(State.DISABLED), State.DISABLED)
    for call in (
        lambda: client.get_public_key(name=made.name),
        lambda: client.asymmetric_decrypt(name=made.name, ciphertext=b"x"),
    ):
        raises("FAILED_PRECONDITION", "current state is: DISABLED", call)
    expect(update(State.ENABLED), State.ENABLED)
    client.get_public_key(name=made.name)
    destroyed = client.destroy_crypto_key_version(name=made.name)
    expect(destroyed.state, State.DESTROY_SCHEDULED)
    expect(destroyed.destroy_time > destroyed.create_time, True)
    raises(
        "FAILED_PRECONDITION",
        "DESTROY_SCHEDULED",
        client.get_public_key,
        name=made.name,
    )
    raises("FAILED_PRECONDITION", "", client.destroy_crypto_key_version, name=made.name)
    raises("FAILED_PRECONDITION", "", update, State.ENABLED)
    expect(client.restore_crypto_key_version(name=made.name).state, State.DISABLED)
    expect(update(State.ENABLED), State.ENABLED)
    shown("a version goes through its states")


def imports(client, ring):
    job = client.create_import_job(
        parent=ring,
        import_job_id="job",
        import_job=kms.ImportJob(
            import_method=kms.ImportJob.ImportMethod.RSA_OAEP_3072_SHA256_AES_256,
            protection_level=kms.ProtectionLevel.SOFTWARE,
        ),
    )
    expect(job.state, kms.ImportJob.ImportJobState.PENDING_GENERATION)
    job = client.get_import_job(name=job.name)
    expect(job.state, kms.ImportJob.ImportJobState.ACTIVE)
    wrapping = serialization.load_pem_public_key(job.public_key.pem.encode())
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pkcs8 = private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    aes = bytes(range(32))
    wrapped = wrapping.encrypt(aes, oaep(hashes.SHA256())) + keywrap.aes_key_wrap_with_padding(
        aes, pkcs8
    )
    algorithm = Algorithm.RSA_DECRYPT_OAEP_2048_SHA256
    key = client.create_crypto_key(
        kms.CreateCryptoKeyRequest(
            parent=ring,
            crypto_key_id="imported",
            skip_initial_version_creation=True,
            crypto_key=kms.CryptoKey(
                purpose=Purpose.ASYMMETRIC_DECRYPT,
                import_only=True,
                version_template=kms.CryptoKeyVersionTemplate(algorithm=algorithm),
            ),
        )
    )
    request = {
        "parent": key.name,
        "algorithm": algorithm,
        "import_job": job.name,
        "wrapped_key": wrapped,
    }
    version = client.import_crypto_key_version(request)
    expect(version.state, State.PENDING_IMPORT)
    expect(client.get_crypto_key_version(name=version.name).import_job, job.name)
    imported = public_key(client, version.name, algorithm)
    expect(imported.public_numbers(), private.public_key().public_numbers())
    request["wrapped_key"] = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    raises("INVALID_ARGUMENT", "", client.import_crypto_key_version, request)
    raises(
        "FAILED_PRECONDITION",
        "import-only",
        client.create_crypto_key_version,
        parent=key.name,
        crypto_key_version=kms.CryptoKeyVersion(),
    )
    shown("a key is imported through an import job")


def pages(client, ring):
    parent = f"{LOCATION}/keyRings"
    for number in range(5):
        client.create_key_ring(
            parent=LOCATION, key_ring_id=f"page-{number}", key_ring=kms.KeyRing()
        )
    expected = sorted([f"{parent}/page-{number}" for number in range(5)] + [ring])
    pager = client.list_key_rings(kms.ListKeyRingsRequest(parent=LOCATION, page_size=2))
    sizes = [len(page.key_rings) for page in pager.pages]
    expect(sizes, [2, 2, 2])
    pager = client.list_key_rings(kms.ListKeyRingsRequest(parent=LOCATION, page_size=2))
    expect([entry.name for entry in pager], expected)
    expect(pager.total_size, 6)
    keys = [key.name for key in client.list_crypto_keys(parent=ring)]
    expect(len(keys), 9)
    versions = client.list_crypto_key_versions(parent=f"{ring}/cryptoKeys/states")
    expect([version.name.rsplit("/", 1)[1] for version in versions], ["1", "2"])
    expect(len(list(client.list_import_jobs(parent=ring))), 1)
    shown("lists come in pages")


def errors(client, ring):
    missing = f"{ring}/cryptoKeys/none/cryptoKeyVersions/1"
    for call in (
        client.get_public_key,
        client.get_crypto_key_version,
        client.destroy_crypto_key_version,
    ):
        raises("NOT_FOUND", "not found", call, name=missing)
    raises(
        "NOT_FOUND", "not found", client.asymmetric_decrypt, name=missing, ciphertext=b"x"
    )
    raises(
        "ALREADY_EXISTS",
        "already exists",
        client.create_key_ring,
        parent=LOCATION,
        key_ring_id="sdk",
        key_ring=kms.KeyRing(),
    )
    shown("errors are those of the service")


def raises(status, text, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except exceptions.GoogleAPICallError as error:
        # Over REST the class of the exception is that of the HTTP status; the body says the rest.
        found = error.response.json()["error"]
        expect(found["status"], status)
        expect(found["code"], error.code)
        assert text in error.message, f"{text!r} is not in {error.message}"
        return
    raise AssertionError(f"no {status} from {call}")


def expect(found, expected):
    assert found == expected, f"found {found!r}, expected {expected!r}"


def shown(what):
    print(what, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
