/* SPDX-License-Identifier: GPL-2.0 */
/* What differs between the kernels this builds for (6.1 and later). */
#ifndef BLKTAP_COMPAT_H
#define BLKTAP_COMPAT_H

#include <linux/blk-mq.h>
#include <linux/device.h>
#include <linux/mm.h>
#include <linux/version.h>

#define BLKTAP_SINCE(major, minor) (KERNEL_VERSION(major, minor, 0) <= LINUX_VERSION_CODE)

/* 6.2: devnode of a class takes a const device. */
#if BLKTAP_SINCE(6, 2)
#define BLKTAP_DEVNODE_DEVICE	const struct device
#else
#define BLKTAP_DEVNODE_DEVICE	struct device
#endif

/* 6.3: flags of a mapping are set by functions. */
#if !BLKTAP_SINCE(6, 3)
static inline void vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags |= flags;
}
#endif

/* 6.4: a class is const, and has no owner. */
#if BLKTAP_SINCE(6, 4)
#define BLKTAP_CLASS		const struct class
#define BLKTAP_CLASS_ATTR	const struct class_attribute
#define BLKTAP_CLASS_OWNER
#else
#define BLKTAP_CLASS		struct class
#define BLKTAP_CLASS_ATTR	struct class_attribute
#define BLKTAP_CLASS_OWNER	.owner = THIS_MODULE,
#endif

/* 6.5: a disk is opened, not a block device. */
#if BLKTAP_SINCE(6, 5)
#define BLKTAP_OPEN(name)	int name(struct gendisk *disk, blk_mode_t mode)
#define BLKTAP_RELEASE(name)	void name(struct gendisk *disk)
#define BLKTAP_OPEN_DISK	disk
#else
#define BLKTAP_OPEN(name)	int name(struct block_device *bdev, fmode_t mode)
#define BLKTAP_RELEASE(name)	void name(struct gendisk *disk, fmode_t mode)
#define BLKTAP_OPEN_DISK	(bdev->bd_disk)
#endif

/* 6.14: merging is what every queue does. */
#if BLKTAP_SINCE(6, 14)
#define BLKTAP_MQ_FLAGS		BLK_MQ_F_NO_SCHED_BY_DEFAULT
#else
#define BLKTAP_MQ_FLAGS		(BLK_MQ_F_SHOULD_MERGE | BLK_MQ_F_NO_SCHED_BY_DEFAULT)
#endif

struct blktap_limits {
	unsigned int logical, physical, physical_offset;
	unsigned int hw_sectors;
	unsigned int discard_sectors, discard_granularity, discard_offset;
	unsigned int zeroes_sectors;
	bool cache, fua;
};

#if BLKTAP_SINCE(6, 11)
static inline struct gendisk *blktap_alloc_disk(struct blk_mq_tag_set *tags,
						const struct blktap_limits *l, void *data)
{
	struct queue_limits lim = {
		.logical_block_size = l->logical,
		.physical_block_size = l->physical,
		.alignment_offset = l->physical_offset,
		.max_hw_sectors = l->hw_sectors,
		.max_hw_discard_sectors = l->discard_sectors,
		.discard_granularity = l->discard_granularity,
		.discard_alignment = l->discard_offset,
		.max_write_zeroes_sectors = l->zeroes_sectors,
	};

	if (l->cache)
		lim.features |= BLK_FEAT_WRITE_CACHE;
	if (l->fua)
		lim.features |= BLK_FEAT_FUA;
	return blk_mq_alloc_disk(tags, &lim, data);
}
#else
static inline struct gendisk *blktap_alloc_disk(struct blk_mq_tag_set *tags,
						const struct blktap_limits *l, void *data)
{
	struct gendisk *disk;
	struct request_queue *q;

#if BLKTAP_SINCE(6, 9)
	disk = blk_mq_alloc_disk(tags, NULL, data);
#else
	disk = blk_mq_alloc_disk(tags, data);
#endif
	if (IS_ERR(disk))
		return disk;
	q = disk->queue;
	blk_queue_logical_block_size(q, l->logical);
	blk_queue_physical_block_size(q, l->physical);
	blk_queue_alignment_offset(q, l->physical_offset);
	blk_queue_max_hw_sectors(q, l->hw_sectors);
	blk_queue_max_discard_sectors(q, l->discard_sectors);
	q->limits.discard_granularity = l->discard_granularity;
	q->limits.discard_alignment = l->discard_offset;
	blk_queue_max_write_zeroes_sectors(q, l->zeroes_sectors);
	blk_queue_write_cache(q, l->cache, l->fua);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, q);
	return disk;
}

static inline void blk_queue_disable_discard(struct request_queue *q)
{
	blk_queue_max_discard_sectors(q, 0);
}

static inline void blk_queue_disable_write_zeroes(struct request_queue *q)
{
	blk_queue_max_write_zeroes_sectors(q, 0);
}
#endif

#endif
