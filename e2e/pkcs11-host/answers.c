// Asks the module for everything, right and wrong, and compares each return value.
//
// usage: answers MODULE tolerant|strict WRAPPED MATERIAL
//
// The key has RSA-OAEP and RSA-OAEP-256, RS256 and PS256, a certificate, and the id 01 02. Ends with
// 1 and one line on stderr for each answer that is wrong.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pkcs11.h"

static int wrong;
static struct functions *p11;

#define EXPECT(expected, call) \
  do { \
    CK_RV rv_ = (call), want_ = (expected); \
    if (rv_ != want_) fprintf(stderr, "line %d: %s: 0x%lx instead of 0x%lx\n", __LINE__, #call, rv_, want_), wrong = 1; \
  } while (0)
#define TRUE_THAT(what) \
  do { \
    if (!(what)) fprintf(stderr, "line %d: not so: %s\n", __LINE__, #what), wrong = 1; \
  } while (0)

static struct oaep oaep_sha1 = {0x220, 1, 1, NULL, 0}, oaep_sha256 = {0x250, 2, 1, NULL, 0};
static struct oaep oaep_mixed = {0x250, 1, 1, NULL, 0}, oaep_sha384 = {0x260, 3, 1, NULL, 0};
static struct { CK_ULONG hash, mgf, salt; } pss_sha256 = {0x250, 2, 32}, pss_salt = {0x250, 2, 20};
static struct mechanism sha1 = {0x9, &oaep_sha1, sizeof oaep_sha1}, sha256 = {0x9, &oaep_sha256, sizeof oaep_sha256};
static struct mechanism mixed = {0x9, &oaep_mixed, sizeof oaep_mixed}, sha384 = {0x9, &oaep_sha384, sizeof oaep_sha384};
static struct mechanism pkcs1 = {0x1, NULL, 0}, rs256 = {0x40, NULL, 0}, rs512 = {0x42, NULL, 0}, aes = {0x1082, NULL, 0};
static struct mechanism ps256 = {0xd, &pss_sha256, sizeof pss_sha256}, bad_salt = {0xd, &pss_salt, sizeof pss_salt};
static struct mechanism no_parameter = {0x9, NULL, 0};

static CK_ULONG find(CK_ULONG session, struct attribute *template, CK_ULONG count, CK_ULONG expected) {
  CK_ULONG objects[16] = {0}, found = 99;
  EXPECT(0, p11->FindObjectsInit(session, template, count));
  EXPECT(0x90, p11->FindObjectsInit(session, template, count));
  EXPECT(0, p11->FindObjects(session, objects, 16, &found));
  EXPECT(0, p11->FindObjectsFinal(session));
  EXPECT(0x91, p11->FindObjectsFinal(session));
  EXPECT(0x91, p11->FindObjects(session, objects, 16, &found));
  if (found != expected) fprintf(stderr, "%lu objects instead of %lu\n", found, expected), wrong = 1;
  return objects[0];
}

static CK_ULONG find_class(CK_ULONG session, CK_ULONG class, CK_ULONG expected) {
  return find(session, &(struct attribute){0, &class, sizeof class}, 1, expected);
}

static void general(int strict) {
  struct initialize reserved = {.reserved = &reserved}, one = {.lock = &one}, own = {&own, &own, &own, &own, 0, NULL};
  CK_ULONG count, session;
  EXPECT(0x190, p11->GetSlotList(1, NULL, &count));
  EXPECT(0x190, p11->Finalize(NULL));
  EXPECT(0x7, p11->Initialize(&reserved));
  EXPECT(0x7, p11->Initialize(&one));
  EXPECT(strict ? 0xa : 0, p11->Initialize(&own));
  EXPECT(0, p11->Initialize(NULL));
  EXPECT(strict ? 0x191 : 0, p11->Initialize(NULL));
  for (int more = strict ? 0 : 2; more > 0; more--) EXPECT(0, p11->Finalize(NULL)); // one is left
  EXPECT(0x7, p11->Finalize(&count));
  unsigned char info[256];
  EXPECT(0, p11->GetInfo(info));
  TRUE_THAT(info[0] == 2 && info[1] == 40);
  EXPECT(0x7, p11->GetInfo(NULL));
  CK_ULONG slots[1];
  count = 0;
  EXPECT(0x150, p11->GetSlotList(1, slots, &count));
  EXPECT(0, p11->GetSlotList(1, slots, &count));
  TRUE_THAT(count == 1);
  EXPECT(0x3, p11->GetTokenInfo(7, NULL));
  EXPECT(0x3, p11->OpenSession(7, 4, NULL, NULL, &session));
  EXPECT(0xb4, p11->OpenSession(slots[0], 2, NULL, NULL, &session));
  EXPECT(0x7, p11->OpenSession(slots[0], 4, NULL, NULL, NULL));
  struct token_info token;
  EXPECT(0, p11->GetTokenInfo(slots[0], &token));
  TRUE_THAT(token.flags == (0x2UL | 0x8 | 0x400 | (strict ? 0x4 : 0)));
  EXPECT(0x8, p11->WaitForSlotEvent(1, &count, NULL));
  EXPECT(0x54, p11->WaitForSlotEvent(0, &count, NULL));
  CK_ULONG mechanisms[16], details[3];
  count = 16;
  EXPECT(0, p11->GetMechanismList(slots[0], mechanisms, &count));
  TRUE_THAT(count == 6); // RSA_PKCS for signatures, OAEP, PSS, SHA256_RSA_PKCS, SHA256_RSA_PKCS_PSS, SHA256
  EXPECT(0, p11->GetMechanismInfo(slots[0], 0x9, details));
  TRUE_THAT(details[0] == 2048 && details[1] == 2048 && details[2] == (0x100 | 0x200));
  EXPECT(0, p11->GetMechanismInfo(slots[0], 0x1, details));
  TRUE_THAT(details[2] == (0x800 | 0x2000));
  EXPECT(0x70, p11->GetMechanismInfo(slots[0], 0x1082, details));
  EXPECT(0, p11->GetMechanismInfo(slots[0], 0x250, details));
  TRUE_THAT(details[0] == 0 && details[1] == 0 && details[2] == 0x400);
}

static void logins(CK_ULONG session, int strict) {
  CK_ULONG info[4];
  EXPECT(0, p11->GetSessionInfo(session, info));
  TRUE_THAT(info[1] == 0); // CKS_RO_PUBLIC_SESSION
  find_class(session, 3, strict ? 0 : 1);
  EXPECT(strict ? 0x101 : 0, p11->Logout(session));
  EXPECT(0x103, p11->Login(session, 9, NULL, 0));
  EXPECT(strict ? 0x91 : 0, p11->Login(session, 2, NULL, 0));
  EXPECT(0, strict ? p11->Login(session, 1, NULL, 0) : 0);
  EXPECT(strict ? 0x100 : 0, p11->Login(session, 1, (CK_BYTE *)"x", 1));
  EXPECT(0, p11->GetSessionInfo(session, info));
  TRUE_THAT(info[1] == 1); // CKS_RO_USER_FUNCTIONS
}

static void objects(CK_ULONG session) {
  find(session, NULL, 0, 3);
  CK_ULONG private = find_class(session, 3, 1), public = find_class(session, 2, 1), certificate = find_class(session, 1, 1);
  find_class(session, 4, 0);
  CK_BYTE id[] = {1, 2};
  CK_ULONG number = 0x0102, other = 0x0103;
  find(session, &(struct attribute){0x102, id, 2}, 1, 3);
  find(session, &(struct attribute){0x102, &number, 8}, 1, 3);
  find(session, &(struct attribute){0x102, &other, 8}, 1, 0);
  EXPECT(0x7, p11->FindObjectsInit(session, NULL, 1));

  CK_BYTE modulus[256], of_certificate[1024], sensitive = 9, extractable = 9;
  CK_ULONG bits = 0;
  struct attribute asked[] = {{0x120, modulus, 256}, {0x103, &sensitive, 1}, {0x162, &extractable, 1}, {0x123, NULL, 0}, {0x11, NULL, 0}};
  EXPECT(0, p11->GetAttributeValue(session, private, asked, 3));
  TRUE_THAT(asked[0].length == 256 && sensitive == 1 && extractable == 0);
  EXPECT(0x12, p11->GetAttributeValue(session, private, asked, 5)); // the last one's
  TRUE_THAT(asked[3].length == (CK_ULONG)-1 && asked[4].length == (CK_ULONG)-1);
  EXPECT(0x11, p11->GetAttributeValue(session, private, asked, 4));
  asked[0].length = 255;
  EXPECT(0x150, p11->GetAttributeValue(session, private, asked, 1));
  EXPECT(0, p11->GetAttributeValue(session, public, &(struct attribute){0x121, &bits, sizeof bits}, 1));
  TRUE_THAT(bits == 2048);
  struct attribute value = {0x11, of_certificate, sizeof of_certificate};
  EXPECT(0, p11->GetAttributeValue(session, certificate, &value, 1));
  TRUE_THAT(memmem(of_certificate, value.length, modulus, 256) != NULL);
  EXPECT(0x82, p11->GetAttributeValue(session, 0, &value, 1));
  EXPECT(0x82, p11->GetAttributeValue(session, 4444, &value, 1));
  EXPECT(0x1b, p11->SetAttributeValue(session, private, &value, 1));
  EXPECT(0x1b, p11->DestroyObject(session, private));
  EXPECT(0xe2, p11->CreateObject(session, &value, 1, &bits));
}

static void decryption(CK_ULONG session, CK_BYTE *wrapped, CK_BYTE *material) {
  CK_ULONG private = find_class(session, 3, 1), public = find_class(session, 2, 1), length = 0;
  CK_BYTE data[256];
  EXPECT(0x91, p11->Decrypt(session, wrapped, 256, NULL, &length));
  EXPECT(0x71, p11->DecryptInit(session, &mixed, private));
  EXPECT(0x71, p11->DecryptInit(session, &sha384, private));
  EXPECT(0x71, p11->DecryptInit(session, &no_parameter, private));
  EXPECT(0x70, p11->DecryptInit(session, &pkcs1, private));
  EXPECT(0x70, p11->DecryptInit(session, &aes, private));
  EXPECT(0x63, p11->DecryptInit(session, &sha1, public));
  EXPECT(0x60, p11->DecryptInit(session, &sha1, 4444));

  EXPECT(0, p11->DecryptInit(session, &sha1, private));
  EXPECT(0x90, p11->DecryptInit(session, &sha1, private));
  EXPECT(0, p11->Decrypt(session, wrapped, 256, NULL, &length));
  TRUE_THAT(length == 256);
  length = 10; // unwrapped once, kept until there is room
  EXPECT(0x150, p11->Decrypt(session, wrapped, 256, data, &length));
  TRUE_THAT(length == 32);
  EXPECT(0, p11->Decrypt(session, wrapped, 256, NULL, &length));
  TRUE_THAT(length == 32);
  EXPECT(0, p11->Decrypt(session, wrapped, 256, data, &length));
  TRUE_THAT(length == 32 && memcmp(data, material, 32) == 0);
  EXPECT(0x91, p11->Decrypt(session, wrapped, 256, data, &length));

  CK_BYTE bad[256];
  memcpy(bad, wrapped, 256);
  bad[200] ^= 1;
  length = 256;
  EXPECT(0, p11->DecryptInit(session, &sha1, private));
  EXPECT(0x40, p11->Decrypt(session, bad, 256, data, &length));
  EXPECT(0x91, p11->Decrypt(session, wrapped, 256, data, &length));
  EXPECT(0, p11->DecryptInit(session, &sha1, private));
  EXPECT(0x41, p11->Decrypt(session, wrapped, 255, data, &length));
  EXPECT(0, p11->DecryptInit(session, &sha1, private));
  EXPECT(0x41, p11->Decrypt(session, NULL, 0, data, &length));
  EXPECT(0, p11->DecryptInit(session, &sha1, private));
  EXPECT(0x54, p11->DecryptUpdate(session, wrapped, 256, data, &length));
  EXPECT(0x91, p11->DecryptUpdate(session, wrapped, 256, data, &length));
  EXPECT(0, p11->DecryptInit(session, &sha1, private));
  EXPECT(0, p11->DecryptInit(session, NULL, private)); // cancels it
  EXPECT(0x91, p11->DecryptInit(session, NULL, private));

  CK_BYTE encrypted[256], long_data[191] = {0};
  length = 255;
  EXPECT(0, p11->EncryptInit(session, &sha256, public));
  EXPECT(0x150, p11->Encrypt(session, material, 32, encrypted, &length));
  TRUE_THAT(length == 256);
  EXPECT(0, p11->Encrypt(session, material, 32, encrypted, &length));
  EXPECT(0, p11->EncryptInit(session, &sha256, public));
  EXPECT(0x21, p11->Encrypt(session, long_data, 191, encrypted, &length));
  EXPECT(0x63, p11->EncryptInit(session, &sha256, private));
  EXPECT(0, p11->DecryptInit(session, &sha256, private));
  length = sizeof data;
  EXPECT(0, p11->Decrypt(session, encrypted, 256, data, &length));
  TRUE_THAT(length == 32 && memcmp(data, material, 32) == 0);
}

static void signatures(CK_ULONG session) {
  // SHA-256 of "one message", and its DigestInfo.
  CK_BYTE info[51] = {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20,
    0xda, 0x52, 0x75, 0xbe, 0xd7, 0x2a, 0x2f, 0xdf, 0x7f, 0x52, 0xc6, 0x6e, 0xda, 0x5c, 0xa8, 0x9d,
    0x5e, 0x5c, 0xdf, 0x0e, 0x42, 0x7c, 0x49, 0x52, 0xd1, 0x46, 0x62, 0x5c, 0xb2, 0x9d, 0xbd, 0x80};
  CK_BYTE *message = (CK_BYTE *)"one message", *digest = info + 19;
  CK_ULONG private = find_class(session, 3, 1), public = find_class(session, 2, 1), length = 0;
  CK_BYTE at_once[256], in_parts[256], of_info[256], pss[256], made[32];
  struct mechanism sha256 = {0x250, NULL, 0};
  EXPECT(0, p11->DigestInit(session, &sha256));
  EXPECT(0x90, p11->DigestInit(session, &sha256));
  EXPECT(0, p11->Digest(session, message, 11, NULL, &length));
  TRUE_THAT(length == 32);
  EXPECT(0, p11->Digest(session, message, 11, made, &length));
  TRUE_THAT(memcmp(made, digest, 32) == 0);
  EXPECT(0x91, p11->DigestFinal(session, made, &length));
  EXPECT(0, p11->DigestInit(session, &sha256));
  EXPECT(0, p11->DigestUpdate(session, message, 4));
  EXPECT(0, p11->DigestUpdate(session, message + 4, 7));
  length = 31;
  EXPECT(0x150, p11->DigestFinal(session, made, &length));
  EXPECT(0, p11->DigestFinal(session, made, &length));
  TRUE_THAT(length == 32 && memcmp(made, digest, 32) == 0);
  length = 0;
  EXPECT(0x70, p11->SignInit(session, &rs512, private));
  EXPECT(0x71, p11->SignInit(session, &bad_salt, private));
  EXPECT(0x63, p11->SignInit(session, &rs256, public));
  EXPECT(0, p11->SignInit(session, &rs256, private));
  EXPECT(0, p11->Sign(session, message, 11, NULL, &length));
  TRUE_THAT(length == 256);
  length = 255;
  EXPECT(0x150, p11->Sign(session, message, 11, at_once, &length));
  EXPECT(0, p11->Sign(session, message, 11, at_once, &length));
  EXPECT(0, p11->SignInit(session, &rs256, private));
  EXPECT(0, p11->SignUpdate(session, message, 4));
  EXPECT(0, p11->SignUpdate(session, message + 4, 7));
  EXPECT(0, p11->SignFinal(session, NULL, &length));
  EXPECT(0, p11->SignFinal(session, in_parts, &length));
  EXPECT(0x91, p11->SignFinal(session, in_parts, &length));
  EXPECT(0, p11->SignInit(session, &pkcs1, private));
  EXPECT(0, p11->Sign(session, info, 51, of_info, &length));
  TRUE_THAT(memcmp(at_once, in_parts, 256) == 0 && memcmp(at_once, of_info, 256) == 0);
  EXPECT(0, p11->SignInit(session, &pkcs1, private));
  EXPECT(0x20, p11->Sign(session, digest, 32, of_info, &length));
  EXPECT(0, p11->SignInit(session, &pkcs1, private));
  EXPECT(0x54, p11->SignUpdate(session, info, 51));
  EXPECT(0, p11->SignInit(session, &ps256, private));
  EXPECT(0x21, p11->Sign(session, digest, 31, pss, &length));
  EXPECT(0, p11->SignInit(session, &ps256, private));
  EXPECT(0, p11->Sign(session, digest, 32, pss, &length));

  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0, p11->Verify(session, message, 11, at_once, 256));
  EXPECT(0x91, p11->Verify(session, message, 11, at_once, 256));
  EXPECT(0, p11->VerifyInit(session, &ps256, public));
  EXPECT(0, p11->Verify(session, digest, 32, pss, 256));
  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0, p11->VerifyUpdate(session, message, 11));
  EXPECT(0, p11->VerifyFinal(session, at_once, 256));
  at_once[9] ^= 1;
  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0xc0, p11->Verify(session, message, 11, at_once, 256));
  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0xc1, p11->Verify(session, message, 11, at_once, 255));
  EXPECT(0x63, p11->VerifyInit(session, &rs256, private));

  // Arguments that cannot be are errors, and errors end what is under way.
  EXPECT(0, p11->DigestInit(session, &sha256));
  EXPECT(0x7, p11->DigestUpdate(session, NULL, 4));
  EXPECT(0x91, p11->DigestUpdate(session, message, 4));
  EXPECT(0, p11->SignInit(session, &rs256, private));
  EXPECT(0x7, p11->SignUpdate(session, NULL, 4));
  EXPECT(0x91, p11->SignUpdate(session, message, 4));
  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0x7, p11->VerifyUpdate(session, NULL, 4));
  EXPECT(0x91, p11->VerifyUpdate(session, message, 4));
  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0x7, p11->VerifyFinal(session, NULL, 256));
  EXPECT(0x91, p11->VerifyFinal(session, at_once, 256));
  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0x7, p11->Verify(session, NULL, 11, at_once, 256));
  EXPECT(0x91, p11->Verify(session, message, 11, at_once, 256));
  EXPECT(0, p11->VerifyInit(session, &rs256, public));
  EXPECT(0x7, p11->Verify(session, message, 11, NULL, 256));
  EXPECT(0x91, p11->Verify(session, message, 11, at_once, 256));
}

static void refusals(CK_ULONG session) {
  CK_BYTE bytes[256];
  CK_ULONG length = 256, handle;
  EXPECT(0x54, p11->WrapKey(session, &sha1, 1, 1, bytes, &length));
  EXPECT(0x54, p11->UnwrapKey(session, &sha1, 1, bytes, 256, NULL, 0, &handle));
  EXPECT(0x54, p11->DigestKey(session, 1));
  EXPECT(0x70, p11->DigestInit(session, &rs256));
  EXPECT(0x121, p11->GenerateRandom(session, bytes, 16));
  EXPECT(0xe2, p11->InitToken(0, bytes, 4, bytes));
  EXPECT(0xe2, p11->InitPIN(session, bytes, 4));
  EXPECT(0xe2, p11->SetPIN(session, bytes, 4, bytes, 4));
  EXPECT(0x51, p11->GetFunctionStatus(session));
  EXPECT(0xb3, p11->WrapKey(99, &sha1, 1, 1, bytes, &length));
  EXPECT(0xb3, p11->CloseSession(99));
}

int main(int count, char **arguments) {
  if (count != 5) return fputs("usage: see answers.c\n", stderr), 2;
  int strict = strcmp(arguments[2], "strict") == 0;
  CK_BYTE wrapped[256], material[32];
  for (int i = 3; i < 5; i++) {
    FILE *file = fopen(arguments[i], "rb");
    size_t wanted = i == 3 ? 256 : 32;
    if (file == NULL || fread(i == 3 ? wrapped : material, 1, wanted, file) != wanted) return fputs("no values\n", stderr), 2;
    fclose(file);
  }
  void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 2;
  CK_RV (*list)(struct functions **) = (CK_RV (*)(struct functions **))dlsym(library, "C_GetFunctionList");
  EXPECT(0x7, list(NULL));
  EXPECT(0, list(&p11));
  CK_ULONG session, second;
  general(strict);
  EXPECT(0, p11->OpenSession(0, 4, NULL, NULL, &session));
  logins(session, strict);
  EXPECT(0, p11->OpenSession(0, 4 | 2, NULL, NULL, &second));
  objects(session);
  decryption(session, wrapped, material);
  signatures(second);
  refusals(second);
  EXPECT(0, p11->CloseSession(session));
  EXPECT(0xb3, p11->CloseSession(session));
  find_class(second, 3, 1); // the login outlives one session
  EXPECT(0, p11->CloseAllSessions(0));
  EXPECT(0xb3, p11->Logout(second));
  EXPECT(0, p11->OpenSession(0, 4, NULL, NULL, &session));
  find_class(session, 3, strict ? 0 : 1); // and not the last one
  EXPECT(0, p11->Finalize(NULL));
  EXPECT(0x190, p11->CloseSession(session));
  dlclose(library);
  return wrong;
}
