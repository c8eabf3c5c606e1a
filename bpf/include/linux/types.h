#ifndef RETINARUN_TYPES_H
#define RETINARUN_TYPES_H
typedef signed char s8; typedef unsigned char u8; typedef short s16; typedef unsigned short u16;
typedef int s32; typedef unsigned int u32; typedef long long s64; typedef unsigned long long u64;
typedef s8 __s8; typedef u8 __u8; typedef s16 __s16; typedef u16 __u16; typedef s32 __s32; typedef u32 __u32; typedef s64 __s64; typedef u64 __u64;
typedef __u16 __le16; typedef __u16 __be16; typedef __u32 __le32; typedef __u32 __be32; typedef __u64 __le64; typedef __u64 __be64; typedef __u16 __sum16; typedef __u32 __wsum;
typedef u8 uint8_t; typedef u16 uint16_t; typedef u32 uint32_t; typedef u64 uint64_t; typedef s8 int8_t; typedef s16 int16_t; typedef s32 int32_t; typedef s64 int64_t;
typedef unsigned long size_t; typedef long ssize_t; typedef unsigned long uintptr_t; typedef _Bool bool; typedef int pid_t; typedef unsigned int gfp_t; typedef unsigned long pgoff_t; typedef long long loff_t; typedef unsigned short umode_t; typedef u32 dev_t; typedef unsigned int fmode_t; typedef u64 sector_t; typedef u64 dma_addr_t;
#define true 1
#define false 0
#ifndef NULL
#define NULL ((void*)0)
#endif
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __user
#define __rcu
#define __percpu
#define __always_inline inline __attribute__((always_inline))
#define offsetof(T,m) __builtin_offsetof(T,m)
#endif
