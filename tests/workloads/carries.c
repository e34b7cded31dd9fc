/* carries files FOLDER N: N files of 4 KiB, each of another content.
 * carries pipe N: N bytes through a pipe to a child, 64 KiB a call.
 * carries packets N: N datagrams of 512 bytes over the loopback, each received before the next.
 */
#include "say.h"
#include <netinet/in.h>

static char block[1 << 16];

static int files(const char *folder, int count)
{
    char path[4096];
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/carried-%d", folder, i);
        memcpy(block, &i, sizeof i);
        int fd = must(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600), "open");
        must(write(fd, block, 4096), "write");
        must(close(fd), "close");
    }
    return 0;
}

static int passed(long count)
{
    const long room = sizeof block;
    int ends[2], status;
    must(pipe(ends), "pipe");
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        close(ends[1]);
        while (read(ends[0], block, sizeof block) > 0)
            ;
        _exit(0);
    }
    close(ends[0]);
    while (count > 0)
        count -= must(write(ends[1], block, count < room ? count : room), "write");
    close(ends[1]);
    must(waitpid(pid, &status, 0), "waitpid");
    return status;
}

static int packets(int count)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int to = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    int from = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    must(bind(to, (struct sockaddr *)&at, sizeof at), "bind");
    must(getsockname(to, (struct sockaddr *)&at, &size), "getsockname");
    must(connect(from, (struct sockaddr *)&at, sizeof at), "connect");
    for (int i = 0; i < count; i++) {
        must(send(from, block, 512, 0), "send");
        must(recv(to, block, sizeof block, 0), "recv");
    }
    say("packets");
    number("port", ntohs(at.sin_port));
    done();
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "files"))
        return files(argv[2], atoi(argv[3]));
    if (argc == 3 && !strcmp(argv[1], "pipe"))
        return passed(atol(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "packets"))
        return packets(atoi(argv[2]));
    return 2;
}
