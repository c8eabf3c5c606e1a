/* BCC asks for this file to find out whether there are kernel headers. These are ours: no kernel's. */
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_ARCH_HAS_SYSCALL_WRAPPER 1
