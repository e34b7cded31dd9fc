/* accepting: a server whose child accepts, by calls of the 32-bit instruction set (-m32). Prints the
 * port and, when all is done, the child. The client is another. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(at);
    char held[64];
    int server = socket(AF_INET, SOCK_STREAM, 0), status;
    if (bind(server, (struct sockaddr *)&at, bytes) || listen(server, 5) ||
        getsockname(server, (struct sockaddr *)&at, &bytes))
        return 1;
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        long multiplexed[4] = {server, 0, 0, 0};
        for (int n = 0; n < 2; n++) {
#ifdef SYS_socketcall
            int one = n ? syscall(SYS_socketcall, 5, multiplexed)
                        : syscall(SYS_accept4, server, NULL, NULL, 0);
#else
            int one = n ? accept(multiplexed[0], NULL, NULL) : accept4(server, NULL, NULL, 0);
#endif
            if (one < 0 || read(one, held, sizeof(held)) <= 0 || write(one, "answer", 6) != 6)
                _exit(1);
            close(one);
        }
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child || status)
        return 1;
    printf("%d\n", child);
    return 0;
}
