/* What a workload truly did, as JSON lines on standard output.
 *
 *     say("openat"); text("path", path); number("ret", got); done();
 *
 * Each line also names the process and the thread. Results are the kernel's: an error is the
 * negative errno. Lines stay in a buffer until flush() or the end, so that telling costs the
 * recording one write. Whoever forks must flush() before, and the child must end by _exit().
 */
#ifndef SAY_H
#define SAY_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static char say_line[1 << 20];
static size_t say_used;

static inline void flush(void)
{
    fflush(stdout);
}

static void text_of(const char *value)
{
    putchar('"');
    for (const unsigned char *c = (const void *)value; *c; c++) {
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if (*c < ' ' || *c >= 127)
            printf("\\u%04x", *c);
        else
            putchar(*c);
    }
    putchar('"');
}

static void say(const char *did)
{
    if (!say_used++)
        setvbuf(stdout, say_line, _IOFBF, sizeof say_line);
    printf("{\"did\": \"%s\", \"pid\": %d, \"tid\": %ld", did, getpid(), syscall(SYS_gettid));
}

static inline void text(const char *name, const char *value)
{
    printf(", \"%s\": ", name);
    text_of(value);
}

static inline void texts(const char *name, char *const *values)
{
    printf(", \"%s\": [", name);
    for (size_t i = 0; values[i]; i++) {
        if (i)
            printf(", ");
        text_of(values[i]);
    }
    printf("]");
}

static inline void number(const char *name, long long value)
{
    printf(", \"%s\": %lld", name, value);
}

static inline void done(void)
{
    printf("}\n");
}

/* The result of a libc call as the kernel gave it. */
static inline long kernel(long result)
{
    return result == -1 ? -errno : result;
}

/* A step without which the rest makes no sense. */
static inline long must(long result, const char *what)
{
    if (result == -1) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
    return result;
}

/* FOLDER/NAME; lives until the end. */
static inline char *in(const char *folder, const char *name)
{
    char *path;
    must(asprintf(&path, "%s/%s", folder, name), "asprintf");
    return path;
}

/* Make a file with some text. */
static inline void make(const char *path, const char *content, mode_t mode)
{
    int fd = must(open(path, O_CREAT | O_TRUNC | O_WRONLY, mode), path);
    must(write(fd, content, strlen(content)), path);
    must(fchmod(fd, mode), path);
    close(fd);
}

/* Copy a file, a program say. */
static inline void copy(const char *from, int out)
{
    char block[1 << 16];
    ssize_t got;
    int fd = must(open(from, O_RDONLY), from);
    while ((got = must(read(fd, block, sizeof block), from)) > 0)
        must(write(out, block, got), "write");
    close(fd);
}

/* Wait for a child, say how it ended. */
static inline int ended(const char *did, pid_t child)
{
    int status;
    must(waitpid(child, &status, 0), "waitpid");
    say(did);
    number("child", child);
    number("status", status);
    return status;
}

#endif
