/* The least that a program does before it can use a key in a PKCS#11 token: load the module,
 * initialise it, find the token by its label, open a session, log in. Says so with one byte.
 *
 * usage: bare_start MODULE LABEL PIN-FILE
 *
 * Declares the few things it needs of PKCS#11 2.40 itself, so that no headers have to be installed. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_RV;

/* The places of the functions in CK_FUNCTION_LIST, after its version. */
enum { INITIALIZE = 0, GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, LOGIN = 18 };

typedef struct {
    unsigned char version[2];
    CK_RV (*functions[68])();
} function_list;

typedef struct {
    unsigned char label[32];
    unsigned char rest[512];
} token_info;

#define CKF_SERIAL_SESSION 4UL
#define CKU_USER 1UL
#define SLOTS 64

static int fail(const char *what, CK_RV rv) {
    fprintf(stderr, "%s: 0x%lx\n", what, rv);
    return 1;
}

int main(int count, char **arguments) {
    if (count != 4) {
        fprintf(stderr, "usage: bare_start MODULE LABEL PIN-FILE\n");
        return 2;
    }
    char pin[256];
    FILE *file = fopen(arguments[3], "r");
    size_t pin_length = file ? fread(pin, 1, sizeof pin, file) : 0;
    if (!pin_length) return fail("no PIN in the file", 0);
    void *module = dlopen(arguments[1], RTLD_NOW);
    if (!module) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    CK_RV (*get)(function_list **) = (CK_RV (*)(function_list **))dlsym(module, "C_GetFunctionList");
    function_list *list;
    CK_RV rv;
    if (!get || (rv = get(&list))) return fail("C_GetFunctionList", get ? rv : 0);
    if ((rv = list->functions[INITIALIZE](NULL))) return fail("C_Initialize", rv);
    CK_ULONG slots[SLOTS], slot_count = SLOTS, session, i;
    if ((rv = list->functions[GET_SLOT_LIST](1, slots, &slot_count))) return fail("C_GetSlotList", rv);
    char label[33];
    snprintf(label, sizeof label, "%-32s", arguments[2]);
    for (i = 0; i < slot_count; i++) {
        token_info info;
        if ((rv = list->functions[GET_TOKEN_INFO](slots[i], &info))) return fail("C_GetTokenInfo", rv);
        if (!memcmp(info.label, label, 32)) break;
    }
    if (i == slot_count) return fail("no such token", slot_count);
    rv = list->functions[OPEN_SESSION](slots[i], CKF_SERIAL_SESSION, NULL, NULL, &session);
    if (rv) return fail("C_OpenSession", rv);
    rv = list->functions[LOGIN](session, CKU_USER, pin, (CK_ULONG)pin_length);
    if (rv) return fail("C_Login", rv);
    return write(1, ".", 1) == 1 ? 0 : 1;
}
