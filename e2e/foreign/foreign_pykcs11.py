"""What PyKCS11 does with the module: list, decrypt, sign.

    foreign_pykcs11.py LIBRARY FOLDER

FOLDER holds `material`, `oaep-sha1` and `oaep-sha256` as OpenSSL made them for the key user-keys;
`pykcs11.rs256` and `pykcs11.ps256`, signatures of `material`, go there.
"""

import sys
from pathlib import Path

import PyKCS11
from PyKCS11 import LowLevel as c

library, folder = sys.argv[1], Path(sys.argv[2])
material = (folder / "material").read_bytes()
module = PyKCS11.PyKCS11Lib()
module.load(library)
(slot,) = module.getSlotList(tokenPresent=True)
assert module.getTokenInfo(slot).label.strip() == "claviger"
session = module.openSession(slot, PyKCS11.CKF_SERIAL_SESSION | PyKCS11.CKF_RW_SESSION)
session.login("any PIN")


def the(kind):
    (found,) = session.findObjects([(c.CKA_CLASS, kind), (c.CKA_LABEL, "user-keys")])
    return found


key, public = the(c.CKO_PRIVATE_KEY), the(c.CKO_PUBLIC_KEY)
assert len(session.findObjects([(c.CKA_CLASS, c.CKO_CERTIFICATE)])) == 2
(modulus,) = session.getAttributeValue(key, [c.CKA_MODULUS])
assert len(modulus) == 256

for name, digest, mgf in [
    ("oaep-sha1", c.CKM_SHA_1, c.CKG_MGF1_SHA1),
    ("oaep-sha256", c.CKM_SHA256, c.CKG_MGF1_SHA256),
]:
    mechanism = PyKCS11.RSAOAEPMechanism(digest, mgf)
    decrypted = session.decrypt(key, (folder / name).read_bytes(), mechanism)
    assert bytes(decrypted) == material, name
    encrypted = session.encrypt(public, material, mechanism)
    assert bytes(session.decrypt(key, encrypted, mechanism)) == material, name

pss = PyKCS11.RSA_PSS_Mechanism(c.CKM_SHA256_RSA_PKCS_PSS, c.CKM_SHA256, c.CKG_MGF1_SHA256, 32)
for name, mechanism in [("rs256", PyKCS11.Mechanism(c.CKM_SHA256_RSA_PKCS)), ("ps256", pss)]:
    signature = bytes(session.sign(key, material, mechanism))
    (folder / f"pykcs11.{name}").write_bytes(signature)
    assert session.verify(public, material, signature, mechanism), name
session.logout()
session.closeSession()
print("done")
