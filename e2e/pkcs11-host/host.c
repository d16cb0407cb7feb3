// A host of a PKCS#11 module that does what an unmodified Key Connector does, in its order and with
// its arguments, and then says what that has left behind.
//
// usage: host MODULE SERIAL label:NAME|id:NUMBER WRAPPED MATERIAL ACTION...
//   sequential N       N cycles from dlopen to dlclose, one after the other
//   threads T N        T threads with N cycles each at once, without any lock
//   no-threads N       N cycles of a host that forbids the module to make threads
//   fork-loaded        forks after dlopen; parent and child make a cycle each
//   fork-initialised   the same after C_Initialize
//   fork-logged-in     the same while logged in
//   loads N            N times dlopen and dlclose, nothing in between
//   loop               cycles until stdin ends
//   first P N          N processes, P at a time, with one cycle each; prints the time of each
//   idle               logs in and decrypts, is idle until stdin ends, and decrypts again
//   decrypts N         one login, then N decryptions; prints the time of each
//
// WRAPPED and MATERIAL are files. Prints one line for each action; ends with 1 at the first error.
// SIGPIPE has its default action, as in a host that has never heard of sockets.
#include <dlfcn.h>
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pkcs11.h"

static const char *module_path, *serial, *key;
static CK_BYTE wrapped[1024], material[1024];
static size_t wrapped_length, material_length;
static CK_ULONG initialize_flags = 2; // CKF_OS_LOCKING_OK

#define FAIL(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), _exit(1))
#define OK(call) \
  do { \
    CK_RV rv_ = (call); \
    if (rv_ != 0) FAIL("%s: 0x%lx", #call, rv_); \
  } while (0)

struct loaded { void *library; struct functions *p11; };
struct found { CK_ULONG session, object; };

static struct loaded load(void) {
  struct loaded loaded;
  loaded.library = dlopen(module_path, RTLD_NOW | RTLD_LOCAL);
  if (loaded.library == NULL) FAIL("dlopen: %s", dlerror());
  CK_RV (*list)(struct functions **) = (CK_RV (*)(struct functions **))dlsym(loaded.library, "C_GetFunctionList");
  if (list == NULL) FAIL("dlsym: %s", dlerror());
  OK(list(&loaded.p11));
  return loaded;
}

static void unload(struct loaded loaded) {
  if (dlclose(loaded.library) != 0) FAIL("dlclose: %s", dlerror());
}

static void initialize(struct functions *p11) {
  struct initialize arguments = {.flags = initialize_flags};
  CK_RV rv = p11->Initialize(&arguments);
  if (rv != 0 && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED) FAIL("C_Initialize: 0x%lx", rv);
}

// The slot whose token has the serial number: compared as the Key Connector does, without blanks
// and case.
static CK_ULONG find_slot(struct functions *p11) {
  CK_ULONG count = 0;
  OK(p11->GetSlotList(0, NULL, &count));
  CK_ULONG slots[count];
  OK(p11->GetSlotList(0, slots, &count));
  for (CK_ULONG i = 0; i < count; i++) {
    struct slot_info slot;
    struct token_info token;
    OK(p11->GetSlotInfo(slots[i], &slot));
    OK(p11->GetTokenInfo(slots[i], &token));
    int length = 16;
    while (length > 0 && token.serial[length - 1] == ' ') length--;
    if ((size_t)length == strlen(serial) && strncasecmp((char *)token.serial, serial, length) == 0) return slots[i];
  }
  FAIL("no token with the serial number %s among %lu", serial, count);
}

static struct found log_in(struct functions *p11) {
  struct found found;
  OK(p11->OpenSession(find_slot(p11), 4 | 2, NULL, NULL, &found.session)); // serial, read-write
  OK(p11->Login(found.session, 1, (CK_BYTE *)"never looked at", 15));
  CK_ULONG class = 3, id; // private key
  CK_BYTE token = 1;
  struct attribute template[3] = {{0x0, &class, sizeof class}, {0x1, &token, 1}};
  if (strncmp(key, "label:", 6) == 0) {
    template[2] = (struct attribute){0x3, (void *)(key + 6), strlen(key + 6)};
  } else {
    id = strtoul(key + 3, NULL, 10);
    template[2] = (struct attribute){0x102, &id, sizeof id};
  }
  CK_ULONG objects[256], count;
  OK(p11->FindObjectsInit(found.session, template, 3));
  OK(p11->FindObjects(found.session, objects, 256, &count));
  OK(p11->FindObjectsFinal(found.session));
  if (count != 1) FAIL("%lu private keys instead of one", count);
  found.object = objects[0];
  return found;
}

static void decrypt(struct functions *p11, struct found found) {
  struct oaep oaep = {.hash = 0x220, .mgf = 1, .source = 1}; // SHA-1, MGF1-SHA-1, no label
  struct mechanism mechanism = {0x9, &oaep, sizeof oaep};
  CK_ULONG length = 0;
  OK(p11->DecryptInit(found.session, &mechanism, found.object));
  OK(p11->Decrypt(found.session, wrapped, wrapped_length, NULL, &length));
  if (length < wrapped_length) FAIL("the length is %lu, less than the modulus's", length);
  CK_BYTE data[length];
  OK(p11->Decrypt(found.session, wrapped, wrapped_length, data, &length));
  if (length != material_length || memcmp(data, material, length) != 0) FAIL("other bytes than were wrapped");
}

static void log_out(struct functions *p11, struct found found) {
  OK(p11->Logout(found.session));
  OK(p11->CloseSession(found.session));
}

static void cycle(void) {
  struct loaded loaded = load();
  initialize(loaded.p11);
  struct found found = log_in(loaded.p11);
  decrypt(loaded.p11, found);
  log_out(loaded.p11, found);
  OK(loaded.p11->Finalize(NULL));
  unload(loaded);
}

static void *cycles(void *count) {
  for (long i = 0; i < (long)count; i++) cycle();
  return NULL;
}

static int entries(const char *folder) {
  DIR *listed = opendir(folder);
  int count = 0;
  for (struct dirent *entry; (entry = readdir(listed)) != NULL;) count += entry->d_name[0] != '.';
  closedir(listed);
  return count;
}

static long resident(void) {
  FILE *file = fopen("/proc/self/statm", "r");
  long total = 0, pages = 0;
  if (fscanf(file, "%ld %ld", &total, &pages) != 2) FAIL("/proc/self/statm");
  fclose(file);
  return pages * sysconf(_SC_PAGESIZE) / 1024;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static void say(const char *what, double microseconds) {
  printf("%s: tasks %d, descriptors %d, resident_kb %ld, us %.1f\n", what, entries("/proc/self/task"),
         entries("/proc/self/fd"), resident(), microseconds);
  fflush(stdout);
}

static void in_a_child(void (*work)(void *), void *argument, const char *what) {
  pid_t child = fork();
  if (child == 0) {
    work(argument);
    _exit(0);
  }
  int status;
  if (waitpid(child, &status, 0) != child || status != 0) FAIL("%s: the child ended with 0x%x", what, status);
}

static void child_after_load(void *unused) {
  (void)unused;
  cycle();
  cycle();
}

// What the parent has initialised is not initialised in the child.
static void child_after_initialize(void *p11) {
  struct functions *functions = p11;
  CK_ULONG count;
  CK_RV rv = functions->GetSlotList(0, NULL, &count);
  if (rv != CKR_CRYPTOKI_NOT_INITIALIZED) FAIL("in the child C_GetSlotList: 0x%lx", rv);
  rv = functions->Logout(1);
  if (rv != CKR_CRYPTOKI_NOT_INITIALIZED) FAIL("in the child C_Logout: 0x%lx", rv);
  child_after_load(NULL);
}

static void fork_at(const char *when) {
  struct loaded loaded = load();
  if (strcmp(when, "fork-loaded") == 0) {
    in_a_child(child_after_load, NULL, when);
    cycle();
  } else {
    initialize(loaded.p11);
    struct found found;
    int logged_in = strcmp(when, "fork-logged-in") == 0;
    if (logged_in) {
      found = log_in(loaded.p11);
      decrypt(loaded.p11, found);
    }
    for (int i = 0; i < 3; i++) {
      in_a_child(child_after_initialize, loaded.p11, when);
      if (logged_in) decrypt(loaded.p11, found);
    }
    if (logged_in) log_out(loaded.p11, found);
    OK(loaded.p11->Finalize(NULL));
  }
  unload(loaded);
}

static void decrypts(long count) {
  struct loaded loaded = load();
  initialize(loaded.p11);
  struct found found = log_in(loaded.p11);
  for (long i = 0; i < count; i++) {
    double begun = now();
    decrypt(loaded.p11, found);
    printf("us %.1f\n", now() - begun);
  }
  log_out(loaded.p11, found);
  OK(loaded.p11->Finalize(NULL));
  unload(loaded);
}

// A host that has just started, again and again: nothing of an earlier one is there.
static void first_cycles(long at_once, long wanted) {
  long begun = 0, running = 0, failed = 0;
  fflush(stdout);
  while (begun < wanted || running > 0) {
    if (begun < wanted && running < at_once) {
      if (fork() == 0) {
        double start = now();
        cycle();
        printf("us %.1f\n", now() - start);
        fflush(stdout);
        _exit(0);
      }
      begun++, running++;
    } else {
      int status;
      if (wait(&status) < 0) FAIL("a process is gone");
      running--, failed += status != 0;
    }
  }
  if (failed > 0) FAIL("%ld of %ld first cycles failed", failed, wanted);
}

static void idle(void) {
  struct loaded loaded = load();
  initialize(loaded.p11);
  struct found found = log_in(loaded.p11);
  decrypt(loaded.p11, found);
  printf("idle\n");
  fflush(stdout);
  struct pollfd input = {.fd = 0, .events = POLLIN};
  poll(&input, 1, -1);
  decrypt(loaded.p11, found);
  log_out(loaded.p11, found);
  OK(loaded.p11->Finalize(NULL));
  unload(loaded);
}

static size_t read_file(const char *path, CK_BYTE *buffer) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) FAIL("%s cannot be read", path);
  size_t length = fread(buffer, 1, 1024, file);
  fclose(file);
  return length;
}

int main(int count, char **arguments) {
  if (count < 7) FAIL("usage: see host.c");
  module_path = arguments[1], serial = arguments[2], key = arguments[3];
  wrapped_length = read_file(arguments[4], wrapped);
  material_length = read_file(arguments[5], material);
  for (int i = 6; i < count; i++) {
    const char *action = arguments[i];
    double begun = now();
    if (strcmp(action, "sequential") == 0) {
      long cycles_wanted = atol(arguments[++i]);
      cycles((void *)cycles_wanted);
    } else if (strcmp(action, "timed") == 0) {
      long cycles_wanted = atol(arguments[++i]);
      for (long one = 0; one < cycles_wanted; one++) {
        double start = now();
        cycle();
        printf("us %.1f\n", now() - start);
      }
    } else if (strcmp(action, "no-threads") == 0) {
      initialize_flags = 2 | 1; // CKF_LIBRARY_CANT_CREATE_OS_THREADS
      cycles((void *)atol(arguments[++i]));
      initialize_flags = 2;
    } else if (strcmp(action, "threads") == 0) {
      long threads = atol(arguments[++i]), each = atol(arguments[++i]);
      pthread_t ids[threads];
      for (long t = 0; t < threads; t++)
        if (pthread_create(&ids[t], NULL, cycles, (void *)each) != 0) FAIL("pthread_create");
      for (long t = 0; t < threads; t++) pthread_join(ids[t], NULL);
    } else if (strncmp(action, "fork-", 5) == 0) {
      fork_at(action);
    } else if (strcmp(action, "loads") == 0) {
      for (long loads = atol(arguments[++i]); loads > 0; loads--) unload(load());
    } else if (strcmp(action, "decrypts") == 0) {
      decrypts(atol(arguments[++i]));
    } else if (strcmp(action, "first") == 0) {
      long at_once = atol(arguments[++i]), wanted = atol(arguments[++i]);
      first_cycles(at_once, wanted);
    } else if (strcmp(action, "idle") == 0) {
      idle();
    } else if (strcmp(action, "loop") == 0) {
      struct pollfd input = {.fd = 0, .events = POLLIN};
      long done = 0;
      do {
        cycle();
        printf("cycle %ld\n", ++done);
        fflush(stdout);
      } while (poll(&input, 1, 0) == 0);
    } else {
      FAIL("unknown action %s", action);
    }
    say(action, now() - begun);
  }
  return 0;
}
