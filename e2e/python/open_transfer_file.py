"""Opens a transfer file as an HSM of Azure would, and writes PKCS#8 (DER) to stdout.

Usage: open_transfer_file.py FILE KEK.pem
"""

import base64
import json
import sys

from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        transfer = json.load(file)
    with open(sys.argv[2], "rb") as file:
        kek = serialization.load_pem_private_key(file.read(), password=None)
    assert transfer["schema_version"] == "1.0.0", transfer
    assert transfer["header"]["alg"] == "dir", transfer
    assert transfer["header"]["enc"] == "CKM_RSA_AES_KEY_WRAP", transfer
    text = transfer["ciphertext"]
    ciphertext = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    length = kek.key_size // 8
    sha1 = hashes.SHA1()
    aes = kek.decrypt(ciphertext[:length], padding.OAEP(padding.MGF1(sha1), sha1, None))
    sys.stdout.buffer.write(keywrap.aes_key_unwrap_with_padding(aes, ciphertext[length:]))


main()
