/* Starts the bundle's kcap with the bundle's own loader, libraries and Python.
 *
 * Linked with nothing, because a host may have no shell and no C library, or none to be trusted.
 * For the same reason what the host's environment says to loaders and libraries is dropped.
 */

#define PATH_BYTES 4096
#define READLINK 89
#define EXECVE 59
#define EXIT 60
#define WRITE 1
#define AT_EXECFN 31

#define LOADER "/lib/ld-linux-x86-64.so.2"
#define PYTHON "/bin/python3.11"
#define PROGRAM "/lib/kcap"

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}

static unsigned long length(const char *text)
{
    unsigned long n = 0;
    while (text[n])
        n++;
    return n;
}

__attribute__((noreturn)) static void fail(const char *message)
{
    call(WRITE, 2, (long)message, length(message));
    for (;;)
        call(EXIT, 1, 0, 0);
}

static int begins(const char *text, const char *with)
{
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

/* Whether a variable would have the host's code or data loaded: none of them is kcap's. */
static int foreign(const char *variable)
{
    static const char *const names[] = {"LD_", "PYTHON", "OPENSSL_", "GLIBC_TUNABLES=",
                                        "GCONV_PATH=", "LOCPATH="};
    for (unsigned long i = 0; i < sizeof names / sizeof *names; i++)
        if (begins(variable, names[i]))
            return 1;
    return 0;
}

/* The folder of this file, without a slash at the end; its length. */
static unsigned long find_home(char *home, char **environment)
{
    long size = call(READLINK, (long)"/proc/self/exe", (long)home, PATH_BYTES);
    if (size <= 0 || size >= PATH_BYTES) { /* no /proc: as it was called, then */
        while (*environment)
            environment++;
        const unsigned long *auxiliary = (const unsigned long *)(environment + 1);
        while (auxiliary[0] && auxiliary[0] != AT_EXECFN)
            auxiliary += 2;
        const char *name = auxiliary[0] ? (const char *)auxiliary[1] : "";
        size = length(name);
        if (size == 0 || size >= PATH_BYTES)
            fail("kcap: where this program lies cannot be found out: mount /proc\n");
        for (long i = 0; i < size; i++)
            home[i] = name[i];
    }
    while (size > 0 && home[size - 1] != '/')
        size--;
    if (size == 0) {
        home[0] = '.';
        return 1;
    }
    for (long i = 0; i < size; i++)
        if (home[i] == ':' || home[i] == ';')
            fail("kcap: the path of its folder has a ':' or ';', which separate the folders of "
                 "libraries: unpack it elsewhere\n");
    return size - 1;
}

static char *join(char *target, const char *home, unsigned long size, const char *name)
{
    for (unsigned long i = 0; i < size; i++)
        target[i] = home[i];
    for (unsigned long i = 0; i <= length(name); i++)
        target[size + i] = name[i];
    return target;
}

__attribute__((noreturn, used)) static void start(long *stack)
{
    long count = stack[0];
    char **given = (char **)(stack + 1), **environment = given + count + 1;
    static char home[PATH_BYTES];
    static char loader[PATH_BYTES + 64], libraries[PATH_BYTES + 64], python[PATH_BYTES + 64],
        program[PATH_BYTES + 64];
    unsigned long size = find_home(home, environment);
    char *fixed[] = {join(loader, home, size, LOADER), "--inhibit-cache",
                     "--library-path", join(libraries, home, size, "/lib"),
                     join(python, home, size, PYTHON), "-I", "-S", "-B", "-X", "utf8",
                     join(program, home, size, PROGRAM)};
    const long own = sizeof fixed / sizeof *fixed;

    char *words[own + count + 1];
    long n = 0;
    for (; n < own; n++)
        words[n] = fixed[n];
    for (long i = 1; i < count; i++)
        words[n++] = given[i];
    words[n] = 0;

    long variables = 0;
    for (char **one = environment; *one; one++)
        variables++;
    char *kept[variables + 2];
    long m = 0;
    for (long i = 0; i < variables; i++)
        if (!foreign(environment[i]))
            kept[m++] = environment[i];
    kept[m++] = "OPENSSL_CONF=/dev/null"; /* the host's names libraries to load */
    kept[m] = 0;

    call(EXECVE, (long)loader, (long)words, (long)kept);
    fail("kcap: the bundle is not whole: lib/ld-linux-x86-64.so.2 beside this program cannot be "
         "started; unpack it again\n");
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
