// The part of PKCS#11 2.40 that the host uses, in the layout of 64-bit Linux.
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

// The functions in the order of the list, up to the last one that is used.
struct functions {
  struct version version;
  CK_RV (*Initialize)(void *);
  CK_RV (*Finalize)(void *);
  CK_RV (*GetInfo)(void *);
  void *GetFunctionList;
  CK_RV (*GetSlotList)(CK_BYTE, CK_ULONG *, CK_ULONG *);
  CK_RV (*GetSlotInfo)(CK_ULONG, struct slot_info *);
  CK_RV (*GetTokenInfo)(CK_ULONG, struct token_info *);
  void *GetMechanismList, *GetMechanismInfo, *InitToken, *InitPIN, *SetPIN;
  CK_RV (*OpenSession)(CK_ULONG, CK_ULONG, void *, void *, CK_ULONG *);
  CK_RV (*CloseSession)(CK_ULONG);
  void *CloseAllSessions, *GetSessionInfo, *GetOperationState, *SetOperationState;
  CK_RV (*Login)(CK_ULONG, CK_ULONG, CK_BYTE *, CK_ULONG);
  CK_RV (*Logout)(CK_ULONG);
  void *CreateObject, *CopyObject, *DestroyObject, *GetObjectSize;
  CK_RV (*GetAttributeValue)(CK_ULONG, CK_ULONG, struct attribute *, CK_ULONG);
  void *SetAttributeValue;
  CK_RV (*FindObjectsInit)(CK_ULONG, struct attribute *, CK_ULONG);
  CK_RV (*FindObjects)(CK_ULONG, CK_ULONG *, CK_ULONG, CK_ULONG *);
  CK_RV (*FindObjectsFinal)(CK_ULONG);
  void *EncryptInit, *Encrypt, *EncryptUpdate, *EncryptFinal;
  CK_RV (*DecryptInit)(CK_ULONG, struct mechanism *, CK_ULONG);
  CK_RV (*Decrypt)(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *);
};

#define CKR_CRYPTOKI_NOT_INITIALIZED 0x190UL
#define CKR_CRYPTOKI_ALREADY_INITIALIZED 0x191UL
