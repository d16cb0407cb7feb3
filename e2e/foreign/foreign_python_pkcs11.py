"""What python-pkcs11 does with the module: list, decrypt, sign.

    foreign_python_pkcs11.py LIBRARY FOLDER

FOLDER holds `material`, `oaep-sha1` and `oaep-sha256` as OpenSSL made them for the key user-keys;
`python-pkcs11.rs256` and `python-pkcs11.ps256`, signatures of `material`, go there.
"""

import sys
from pathlib import Path

import pkcs11
from pkcs11 import MGF, Attribute, KeyType, Mechanism, ObjectClass

library, folder = pkcs11.lib(sys.argv[1]), Path(sys.argv[2])
material = (folder / "material").read_bytes()
token = library.get_token(token_label="claviger")
sha1, sha256 = (Mechanism.SHA_1, MGF.SHA1), (Mechanism.SHA256, MGF.SHA256)

with token.open(user_pin="any PIN") as session:
    labels = sorted(key.label for key in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
    assert labels == ["old-keys", "user-keys"], labels
    key = session.get_key(ObjectClass.PRIVATE_KEY, KeyType.RSA, "user-keys")
    public = session.get_key(ObjectClass.PUBLIC_KEY, KeyType.RSA, "user-keys")
    assert key.key_length == 2048 and key[Attribute.NEVER_EXTRACTABLE]
    for name, (digest, mgf) in [("oaep-sha1", sha1), ("oaep-sha256", sha256)]:
        options = {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": (digest, mgf, None)}
        assert key.decrypt((folder / name).read_bytes(), **options) == material, name
        assert key.decrypt(public.encrypt(material, **options), **options) == material, name
    for name, options in [
        ("rs256", {"mechanism": Mechanism.SHA256_RSA_PKCS}),
        (
            "ps256",
            {
                "mechanism": Mechanism.SHA256_RSA_PKCS_PSS,
                "mechanism_param": (Mechanism.SHA256, MGF.SHA256, 32),
            },
        ),
    ]:
        signature = key.sign(material, **options)
        (folder / f"python-pkcs11.{name}").write_bytes(signature)
        assert public.verify(material, signature, **options), name
print("done")
