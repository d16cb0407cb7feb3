# Runs its arguments beside a database of NSS with the RSA keys key-BITS of the folder $FOLDER.
set -eu
cd "$FOLDER"
mkdir database
# Else each operation derives the key of the database ten thousand times.
export NSS_MIN_MP_PBE_ITERATION_COUNT=1 NSS_MAX_MP_PBE_ITERATION_COUNT=1
certutil -N -d sql:database -f "$PIN_FILE"
for key in key-*.der; do
  name="$(basename "$key" .der)"
  openssl pkey -inform DER -in "$key" -out key.pem
  openssl req -x509 -key key.pem -subj "/CN=$name" -days 100 -out certificate.pem
  openssl pkcs12 -export -inkey key.pem -in certificate.pem -name "$name" -passout "file:$PIN_FILE" -out key.p12
  pk12util -i key.p12 -d sql:database -k "$PIN_FILE" -w "$PIN_FILE" > /dev/null
done
"$@"
