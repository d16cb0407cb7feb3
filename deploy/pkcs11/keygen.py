#!/usr/bin/env python3
"""Makes an RSA key in a PKCS#11 token that can unwrap and nothing else.

    keygen.py MODULE TOKEN-LABEL KEY-LABEL ID [BITS]

ID is in hexadecimal. The PIN is asked for, or read from standard input if that is no terminal.
pkcs11-tool and p11tool leave CKA_UNWRAP on, and the former CKA_SIGN too. Needs PyKCS11: Debian's
package python3-pykcs11, or `pip install pykcs11`.
"""

import getpass
import sys

import PyKCS11
from PyKCS11 import CK_FALSE as NO
from PyKCS11 import CK_TRUE as YES
from PyKCS11 import LowLevel as c

if len(sys.argv) not in (5, 6):
    sys.exit(__doc__.strip())
path, token, label, key_id = sys.argv[1:5]
bits = int(sys.argv[5]) if len(sys.argv) == 6 else 3072
module = PyKCS11.PyKCS11Lib()
module.load(path)
slots = [
    slot
    for slot in module.getSlotList(tokenPresent=True)
    if module.getTokenInfo(slot).label.strip(" \0") == token
]
if len(slots) != 1:
    sys.exit(f"{len(slots)} tokens have the label {token!r}; exactly one must")
pin = getpass.getpass("PIN: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
session = module.openSession(slots[0], PyKCS11.CKF_SERIAL_SESSION | PyKCS11.CKF_RW_SESSION)
session.login(pin)
if session.findObjects([(c.CKA_CLASS, c.CKO_PRIVATE_KEY), (c.CKA_LABEL, label)]):
    sys.exit(f"the token has a private key with the label {label!r}; choose another label")
name = [(c.CKA_TOKEN, YES), (c.CKA_LABEL, label), (c.CKA_ID, bytes.fromhex(key_id))]
public = name + [
    (c.CKA_PRIVATE, NO),
    (c.CKA_MODULUS_BITS, bits),
    (c.CKA_PUBLIC_EXPONENT, (1, 0, 1)),
    (c.CKA_ENCRYPT, YES),
    (c.CKA_VERIFY, NO),
    (c.CKA_WRAP, NO),
]
private = name + [
    (c.CKA_PRIVATE, YES),
    (c.CKA_SENSITIVE, YES),
    (c.CKA_EXTRACTABLE, NO),
    (c.CKA_DECRYPT, YES),
    (c.CKA_SIGN, NO),
    (c.CKA_SIGN_RECOVER, NO),
    (c.CKA_UNWRAP, NO),
]
session.generateKeyPair(public, private)
print(f"made RSA-{bits} {label} with the id {key_id}: it unwraps, and does nothing else")
