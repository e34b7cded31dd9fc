/* Passes bytes of a known sequence through a pipe and through a pair of sockets, with every call
 * that has them in memory. What was passed is known: see tests/stream_support.py. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static unsigned long place;
static unsigned char out[65536], in[65536];

static void must(int good)
{
    if (!good)
        _exit(1);
}

/* The next bytes of the sequence. */
static void *next(unsigned long length)
{
    for (unsigned long i = 0; i < length; i++, place++)
        out[i] = (unsigned char)(place * 31 + (place >> 8));
    return out;
}

static void through_a_pipe(void)
{
    int p[2];
    must(pipe(p) == 0 && fcntl(p[1], F_SETPIPE_SZ, 1 << 20) > 0);
    must(write(p[1], next(1000), 1000) == 1000 && read(p[0], in, sizeof(in)) == 1000);
    next(5100);
    struct iovec from[] = {{out, 100}, {out, 0}, {out + 100, 5000}};
    struct iovec to[] = {{in, 5000}, {in + 5000, 1000}};
    must(writev(p[1], from, 3) == 5100 && readv(p[0], to, 2) == 5100);
    struct iovec whole = {next(3000), 3000};
    must(vmsplice(p[1], &whole, 1, 0) == 3000 && read(p[0], in, sizeof(in)) == 3000);
    must(write(p[1], next(60000), 60000) == 60000);
    for (int left = 60000; left > 0;) {
        int got = read(p[0], in, 7777);
        must(got > 0);
        left -= got;
    }
    close(p[1]);
    must(read(p[0], in, 1) == 0);
    close(p[0]);
}

static void through_sockets(void)
{
    int s[2];
    must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0);
    must(send(s[0], next(700), 700, 0) == 700);
    must(recv(s[1], in, sizeof(in), MSG_PEEK) == 700 && recv(s[1], in, sizeof(in), 0) == 700);
    next(700);
    struct iovec from[] = {{out, 300}, {out + 300, 400}}, to[] = {{in, 250}, {in + 250, 9000}};
    struct msghdr sent = {.msg_iov = from, .msg_iovlen = 2}, got = {.msg_iov = to, .msg_iovlen = 2};
    must(sendmsg(s[0], &sent, 0) == 700 && recvmsg(s[1], &got, 0) == 700);
    next(30030);
    struct iovec each[] = {{out, 10}, {out + 10, 20}, {out + 30, 30000}};
    struct iovec room[] = {{in, 100}, {in + 100, 100}, {in + 200, 60000}};
    struct mmsghdr many[3] = {}, back[3] = {};
    for (int i = 0; i < 3; i++) {
        many[i].msg_hdr = (struct msghdr){.msg_iov = &each[i], .msg_iovlen = 1};
        back[i].msg_hdr = (struct msghdr){.msg_iov = &room[i], .msg_iovlen = 1};
    }
    must(sendmmsg(s[0], many, 3, 0) == 3 && recvmmsg(s[1], back, 3, 0, NULL) == 3);
    must(send(s[0], next(500), 500, 0) == 500);
    must(recv(s[1], in, 200, MSG_TRUNC) == 500); /* 300 of them are gone */
    close(s[0]);
    must(recv(s[1], in, 1, 0) == 0);
    close(s[1]);
}

int main(void)
{
    through_a_pipe();
    place = 0;
    through_sockets();
    return 0;
}
