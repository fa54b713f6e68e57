/* SPDX-License-Identifier: GPL-2.0 */
/*
 * blktap: block devices that a process serves through a ring of shared memory.
 *
 * README.md is the specification of the interface: layouts, numbers, errors.
 *
 *  control.tap  ──►  struct blktap (a minor: name, device, sysfs)
 *                       │ one at a time
 *                    struct blktap_ring (an open of the ring device: pages, requests)
 *                       │ at most one
 *                    struct gendisk (tda, tdb, ...)
 *
 * A ring lives from open to the last close plus the removal of its disk, which
 * a worker does: the process that closes it may be anywhere, even below the
 * mmap lock, and must not wait. Whoever wants the minor next waits for that.
 *
 * Locks; none is taken while another is held but the last:
 *   blktap_lock                which minors exist, their rings and names
 *   blktap_ring.disk_lock      the disk of a ring: create, remove
 *   blktap_ring.respond_lock   one taker of responses at a time
 *   blktap_ring.lock           state and requests; a spin lock, and a leaf
 */
#ifndef BLKTAP_H
#define BLKTAP_H

#include <linux/blk-mq.h>
#include <linux/build_bug.h>
#include <linux/device.h>
#include <linux/kref.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define BLKTAP_MINORS		16384
#define BLKTAP_REQUESTS		32
#define BLKTAP_SEGMENTS		11
#define BLKTAP_PAGES		(1 + BLKTAP_REQUESTS * BLKTAP_SEGMENTS)
#define BLKTAP_NAME_MAX		256

/* The interface to user space. */

#define BLKTAP_CTL_ALLOC	200
#define BLKTAP_CTL_FREE		201

#define BLKTAP_RING_RESPOND	1
#define BLKTAP_RING_CREATE_OLD	202
#define BLKTAP_RING_REMOVE	207
#define BLKTAP_RING_CREATE	208
#define BLKTAP_RING_KEEP	209

#define BLKTAP_OP_READ		0
#define BLKTAP_OP_WRITE		1
#define BLKTAP_OP_FLUSH		2
#define BLKTAP_OP_TRIM		3
#define BLKTAP_OP_ZEROES	4

#define BLKTAP_RQ_FUA		BIT(0)
#define BLKTAP_RQ_NOUNMAP	BIT(1)

#define BLKTAP_RSP_OKAY		0
#define BLKTAP_RSP_ERROR	(-1)
#define BLKTAP_RSP_NOTSUPP	(-2)

#define BLKTAP_MSG_CLOSE	3

#define BLKTAP_FLAG_RO		BIT_ULL(0)
#define BLKTAP_FLAG_PHYS	BIT_ULL(1)
#define BLKTAP_FLAG_FLUSH	BIT_ULL(2)
#define BLKTAP_FLAG_TRIM	BIT_ULL(3)
#define BLKTAP_FLAG_ZEROES	BIT_ULL(8)
#define BLKTAP_FLAG_FUA		BIT_ULL(9)
#define BLKTAP_FLAG_LEVEL	BIT_ULL(10)
#define BLKTAP_FLAGS		(BLKTAP_FLAG_RO | BLKTAP_FLAG_PHYS | BLKTAP_FLAG_FLUSH | \
				 BLKTAP_FLAG_TRIM | BLKTAP_FLAG_ZEROES | \
				 BLKTAP_FLAG_FUA | BLKTAP_FLAG_LEVEL)

struct blktap_handle {
	__u32 ring_major;
	__u32 bdev_major;
	__u32 minor;
};

struct blktap_info {
	__u64 capacity;			/* sectors of 512 bytes */
	__u32 sector_size;
	__u32 physical_sector_size;
	__u64 flags;
	/* Read only if BLKTAP_FLAG_PHYS asks for it. */
	__u32 phys_block_size;
	__u32 phys_block_offset;
	/* Read only if BLKTAP_FLAG_TRIM asks for it. */
	__u32 trim_block_size;
	__u32 trim_block_offset;
};

struct blktap_info_old {
	char name[BLKTAP_NAME_MAX];
	__u64 capacity;
	__u64 sector_size;
};

struct blktap_segment {
	__u32 pad0;
	__u8 first_sect;
	__u8 last_sect;
	__u16 pad1;
};

struct blktap_request {
	__u8 operation;
	__u8 nr_segments;
	__u16 flags;
	__u32 pad;
	__u64 id;
	__u64 sector;
	union {
		struct blktap_segment seg[BLKTAP_SEGMENTS];
		__u64 nr_sectors;
	};
};

struct blktap_response {
	__u64 id;
	__u8 operation;
	__u8 pad;
	__s16 status;
	__u32 pad1;
};

struct blktap_sring {
	__u32 req_prod;
	__u32 req_event;
	__u32 rsp_prod;
	__u32 rsp_event;
	__u8 message;
	__u8 pad[47];
	union {
		struct blktap_request req;
		struct blktap_response rsp;
	} entry[BLKTAP_REQUESTS];
};

static_assert(sizeof(struct blktap_handle) == 12);
static_assert(offsetof(struct blktap_info, flags) == 16);
static_assert(offsetof(struct blktap_info, trim_block_size) == 32);
static_assert(sizeof(struct blktap_info_old) == 272);
static_assert(sizeof(struct blktap_request) == 112);
static_assert(offsetof(struct blktap_request, seg) == 24);
static_assert(offsetof(struct blktap_response, status) == 10);
static_assert(offsetof(struct blktap_sring, entry) == 64);
static_assert(sizeof(struct blktap_sring) <= PAGE_SIZE);

/* What is behind it. */

struct blktap_pool;
struct blktap_ring;
struct miscdevice;

struct blktap {
	int minor;
	struct device *dev;
	struct blktap_ring *ring;	/* holds a reference */
	char name[BLKTAP_NAME_MAX];	/* empty: none was given */
	struct blktap_pool *pool;
};

enum blktap_ring_state {
	BLKTAP_UNMAPPED,		/* opened, not mapped yet */
	BLKTAP_MAPPED,			/* or kept: then nobody may have it mapped */
	BLKTAP_DEAD,			/* unmapped, closed, or full of nonsense */
};

struct blktap_slot {
	struct request *rq;		/* NULL: the process owes no answer */
	u32 number;			/* of the request in the ring */
	u8 operation;
};

struct blktap_ring {
	struct kref ref;
	int minor;
	wait_queue_head_t wait;		/* of poll */

	struct mutex disk_lock;		/* disk, tags */
	struct gendisk *disk;
	struct blk_mq_tag_set tags;

	struct mutex respond_lock;	/* rsp_cons */
	u32 rsp_cons;

	spinlock_t lock;		/* what follows */
	enum blktap_ring_state state;
	bool serving;			/* there is a disk, and it may send requests */
	bool by_level;			/* the process keeps req_event */
	bool remove_wanted;		/* REMOVE_DEVICE found it busy */
	bool broken;			/* dead because of what was in the ring */
	bool kept;			/* outlives its mapping, as long as its file is open */
	unsigned int mappings;
	unsigned int openers;		/* of the disk */
	unsigned int outstanding;	/* slots with a request */
	struct mm_struct *mm;		/* compared, never followed */
	u32 req_prod;			/* requests in the ring, and of these */
	u32 pushed;			/* those that the process was told of */
	u32 poll_seen;
	struct blktap_slot slots[BLKTAP_REQUESTS];

	struct pid *task;
	bool released;			/* its file is closed: under blktap_lock */
	struct work_struct end;
	struct completion gone;		/* nothing is left of its disk */

	/* User space has these mapped: what is read from them proves nothing. */
	struct blktap_sring *sring;
	struct page *pages[BLKTAP_PAGES];
};

extern const struct file_operations blktap_ring_fops;
extern struct class blktap_class;
extern struct workqueue_struct *blktap_wq;
extern struct mutex blktap_lock;
extern struct xarray blktap_taps;
extern int blktap_ring_major;
extern int blktap_bdev_major;
extern unsigned int blktap_verbosity;
extern const struct attribute_group *blktap_control_groups[];

/* main.c */
struct blktap *blktap_lock_idle(int minor);

/* ring.c */
void blktap_ring_kill(struct blktap_ring *ring);
void blktap_ring_put(struct blktap_ring *ring);
void blktap_ring_wake(struct blktap_ring *ring, __poll_t events);
bool blktap_ring_push(struct blktap_ring *ring);
void blktap_ring_ask_to_close(struct blktap_ring *ring);

/* disk.c */
int blktap_disk_create(struct blktap_ring *ring, struct blktap_info *info);
int blktap_disk_remove(struct blktap_ring *ring);
void blktap_disk_end(struct blktap_ring *ring);
void blktap_disk_finish(struct blktap_ring *ring, struct request *rq, u8 operation, s16 status);

/* pool.c */
extern struct device_attribute dev_attr_pool;
int blktap_pool_enter(struct blktap *tap);
void blktap_pool_leave(struct blktap *tap);
int blktap_control_register(struct miscdevice *control);
void blktap_control_unregister(struct miscdevice *control);

#endif
