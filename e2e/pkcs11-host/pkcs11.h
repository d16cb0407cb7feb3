// The part of PKCS#11 2.40 that the hosts use, in the layout of 64-bit Linux.
#pragma once
#include <stdint.h>

typedef unsigned long CK_ULONG;
typedef unsigned char CK_BYTE;
typedef CK_ULONG CK_RV;

struct attribute { CK_ULONG type; void *value; CK_ULONG length; };
struct mechanism { CK_ULONG kind; void *parameter; CK_ULONG length; };
struct oaep { CK_ULONG hash, mgf, source; void *label; CK_ULONG label_length; };
struct initialize { void *create, *destroy, *lock, *unlock; CK_ULONG flags; void *reserved; };
struct version { CK_BYTE major, minor; };
struct slot_info { CK_BYTE description[64], maker[32]; CK_ULONG flags; struct version hardware, firmware; };
struct token_info {
  CK_BYTE label[32], maker[32], model[16], serial[16];
  CK_ULONG flags, sessions[4], pin[2], memory[4];
  struct version hardware, firmware;
  CK_BYTE time[16];
};

typedef CK_RV bytes_to_bytes(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *);
typedef CK_RV begin(CK_ULONG, struct mechanism *, CK_ULONG);

// All functions, in the order of the list.
struct functions {
  struct version version;
  CK_RV (*Initialize)(void *);
  CK_RV (*Finalize)(void *);
  CK_RV (*GetInfo)(void *);
  void *GetFunctionList;
  CK_RV (*GetSlotList)(CK_BYTE, CK_ULONG *, CK_ULONG *);
  CK_RV (*GetSlotInfo)(CK_ULONG, struct slot_info *);
  CK_RV (*GetTokenInfo)(CK_ULONG, struct token_info *);
  CK_RV (*GetMechanismList)(CK_ULONG, CK_ULONG *, CK_ULONG *);
  CK_RV (*GetMechanismInfo)(CK_ULONG, CK_ULONG, CK_ULONG *);
  CK_RV (*InitToken)(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *);
  CK_RV (*InitPIN)(CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*SetPIN)(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*OpenSession)(CK_ULONG, CK_ULONG, void *, void *, CK_ULONG *);
  CK_RV (*CloseSession)(CK_ULONG);
  CK_RV (*CloseAllSessions)(CK_ULONG);
  CK_RV (*GetSessionInfo)(CK_ULONG, CK_ULONG *);
  void *GetOperationState, *SetOperationState;
  CK_RV (*Login)(CK_ULONG, CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*Logout)(CK_ULONG);
  CK_RV (*CreateObject)(CK_ULONG, struct attribute *, CK_ULONG, CK_ULONG *);
  void *CopyObject;
  CK_RV (*DestroyObject)(CK_ULONG, CK_ULONG);
  void *GetObjectSize;
  CK_RV (*GetAttributeValue)(CK_ULONG, CK_ULONG, struct attribute *, CK_ULONG);
  CK_RV (*SetAttributeValue)(CK_ULONG, CK_ULONG, struct attribute *, CK_ULONG);
  CK_RV (*FindObjectsInit)(CK_ULONG, struct attribute *, CK_ULONG);
  CK_RV (*FindObjects)(CK_ULONG, CK_ULONG *, CK_ULONG, CK_ULONG *);
  CK_RV (*FindObjectsFinal)(CK_ULONG);
  begin *EncryptInit;
  bytes_to_bytes *Encrypt;
  void *EncryptUpdate, *EncryptFinal;
  begin *DecryptInit;
  bytes_to_bytes *Decrypt, *DecryptUpdate;
  void *DecryptFinal;
  CK_RV (*DigestInit)(CK_ULONG, struct mechanism *);
  CK_RV (*Digest)(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *);
  CK_RV (*DigestUpdate)(CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*DigestKey)(CK_ULONG, CK_ULONG);
  CK_RV (*DigestFinal)(CK_ULONG, CK_BYTE *, CK_ULONG *);
  begin *SignInit;
  bytes_to_bytes *Sign;
  CK_RV (*SignUpdate)(CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*SignFinal)(CK_ULONG, CK_BYTE *, CK_ULONG *);
  void *SignRecoverInit, *SignRecover;
  begin *VerifyInit;
  CK_RV (*Verify)(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*VerifyUpdate)(CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*VerifyFinal)(CK_ULONG, CK_BYTE *, CK_ULONG);
  void *VerifyRecoverInit, *VerifyRecover, *DigestEncryptUpdate, *DecryptDigestUpdate;
  void *SignEncryptUpdate, *DecryptVerifyUpdate, *GenerateKey, *GenerateKeyPair;
  CK_RV (*WrapKey)(CK_ULONG, struct mechanism *, CK_ULONG, CK_ULONG, CK_BYTE *, CK_ULONG *);
  CK_RV (*UnwrapKey)(CK_ULONG, struct mechanism *, CK_ULONG, CK_BYTE *, CK_ULONG, struct attribute *, CK_ULONG, CK_ULONG *);
  void *DeriveKey, *SeedRandom;
  CK_RV (*GenerateRandom)(CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*GetFunctionStatus)(CK_ULONG);
  void *CancelFunction;
  CK_RV (*WaitForSlotEvent)(CK_ULONG, CK_ULONG *, void *);
};

#define CKR_CRYPTOKI_NOT_INITIALIZED 0x190UL
#define CKR_CRYPTOKI_ALREADY_INITIALIZED 0x191UL
