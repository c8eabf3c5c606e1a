/* The running kernel's version, as uname says; RETINARUN_KERNEL is given on the command line. */
#ifndef RETINARUN_VERSION_H
#define RETINARUN_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE RETINARUN_KERNEL
#endif
#endif
