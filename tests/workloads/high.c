/* Code in the upper half of what a 32-bit program may address: the result of mmap looks negative. */
#include "say.h"

int main(void)
{
    unsigned map[6] = {0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1U, 0};
    unsigned bx = map[0], cx = map[1], dx = map[2], si = map[3], di = map[4];
    long got;
    asm volatile("push %%rbp; xor %%ebp, %%ebp; int $0x80; pop %%rbp"
                 : "=a"(got)
                 : "a"(192), "b"(bx), "c"(cx), "d"(dx), "S"(si), "D"(di)
                 : "memory", "r8", "r9", "r10", "r11");
    say("mmap");
    number("ret", (unsigned)got);
    done();
    return 0;
}
