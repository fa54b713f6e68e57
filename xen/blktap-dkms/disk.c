// SPDX-License-Identifier: GPL-2.0
/*
 * The disk: requests of the block layer into the ring, answers back.
 *
 * A request's tag is its id in the ring and names its data pages. Data is
 * copied between these pages and the request's own, packed from the start.
 */
#include <linux/blkdev.h>
#include <linux/ctype.h>
#include <linux/highmem.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/poll.h>

#include "blktap.h"
#include "compat.h"

#define BLKTAP_REQUEST_SECTORS	(BLKTAP_SEGMENTS << (PAGE_SHIFT - SECTOR_SHIFT))
/* Sectors in one TRIM or ZEROES: what a program can count in 32 bits of bytes. */
#define BLKTAP_RANGE_SECTORS	(UINT_MAX >> SECTOR_SHIFT)
#define BLKTAP_PHYSICAL_MAX	65536

unsigned int blktap_verbosity;

/* ---- requests ---- */

static int blktap_operation(struct request *rq)
{
	switch (req_op(rq)) {
	case REQ_OP_READ:
		return BLKTAP_OP_READ;
	case REQ_OP_WRITE:
		return BLKTAP_OP_WRITE;
	case REQ_OP_FLUSH:
		return BLKTAP_OP_FLUSH;
	case REQ_OP_DISCARD:
		return BLKTAP_OP_TRIM;
	case REQ_OP_WRITE_ZEROES:
		return BLKTAP_OP_ZEROES;
	default:
		return -1;
	}
}

/* Between a request's pages and the ring's. */
static void blktap_copy(struct blktap_ring *ring, struct request *rq, bool to_ring)
{
	struct page **pages = &ring->pages[1 + rq->tag * BLKTAP_SEGMENTS];
	struct req_iterator iter;
	unsigned int at = 0;
	struct bio_vec bv;

	rq_for_each_segment(bv, rq, iter) {
		unsigned int done = 0;

		while (done < bv.bv_len) {
			unsigned int offset = offset_in_page(at);
			unsigned int n = min_t(unsigned int, bv.bv_len - done, PAGE_SIZE - offset);
			struct page *page = pages[at >> PAGE_SHIFT];

			if (to_ring)
				memcpy_page(page, offset, bv.bv_page, bv.bv_offset + done, n);
			else
				memcpy_page(bv.bv_page, bv.bv_offset + done, page, offset, n);
			done += n;
			at += n;
		}
	}
}

static void blktap_fill(struct blktap_request *to, struct request *rq, u8 operation)
{
	unsigned int sectors = blk_rq_sectors(rq), s;
	const unsigned int per_page = PAGE_SIZE >> SECTOR_SHIFT;

	/* The entry may hold an answer, or what the process left there. */
	memset(to, 0, sizeof(*to));
	to->operation = operation;
	to->id = rq->tag;
	if (operation == BLKTAP_OP_FLUSH)
		return;
	to->sector = blk_rq_pos(rq);
	if (operation == BLKTAP_OP_TRIM || operation == BLKTAP_OP_ZEROES) {
		to->nr_sectors = sectors;
		if (operation == BLKTAP_OP_ZEROES && (rq->cmd_flags & REQ_NOUNMAP))
			to->flags = BLKTAP_RQ_NOUNMAP;
		return;
	}
	if (operation == BLKTAP_OP_WRITE && (rq->cmd_flags & REQ_FUA))
		to->flags = BLKTAP_RQ_FUA;
	to->nr_segments = DIV_ROUND_UP(sectors, per_page);
	for (s = 0; s < to->nr_segments; s++) {
		to->seg[s].last_sect = min(sectors, per_page) - 1;
		sectors -= min(sectors, per_page);
	}
}

static blk_status_t blktap_queue_rq(struct blk_mq_hw_ctx *hctx, const struct blk_mq_queue_data *bd)
{
	struct blktap_ring *ring = hctx->queue->queuedata;
	struct request *rq = bd->rq;
	int operation = blktap_operation(rq);
	struct blktap_slot *slot;
	unsigned long flags;
	bool wake = false;

	if (operation < 0)
		return BLK_STS_NOTSUPP;
	/* The queue's limits see to it; the ring's pages depend on it. */
	if (WARN_ON_ONCE(rq->tag < 0 || rq->tag >= BLKTAP_REQUESTS ||
			 (operation <= BLKTAP_OP_WRITE &&
			  blk_rq_sectors(rq) > BLKTAP_REQUEST_SECTORS)))
		return BLK_STS_IOERR;

	blk_mq_start_request(rq);
	if (operation == BLKTAP_OP_WRITE)
		blktap_copy(ring, rq, true);

	slot = &ring->slots[rq->tag];
	spin_lock_irqsave(&ring->lock, flags);
	if (!ring->serving) {
		spin_unlock_irqrestore(&ring->lock, flags);
		return BLK_STS_IOERR;
	}
	blktap_fill(&ring->sring->entry[ring->req_prod % BLKTAP_REQUESTS].req, rq, operation);
	slot->rq = rq;
	slot->number = ring->req_prod++;
	slot->operation = operation;
	ring->outstanding++;
	if (bd->last)
		wake = blktap_ring_push(ring);
	spin_unlock_irqrestore(&ring->lock, flags);
	/* The request may be answered by now. */
	if (wake)
		blktap_ring_wake(ring, EPOLLIN | EPOLLRDNORM);
	return BLK_STS_OK;
}

/* After requests that were not the last: the last could not be queued. */
static void blktap_commit_rqs(struct blk_mq_hw_ctx *hctx)
{
	struct blktap_ring *ring = hctx->queue->queuedata;
	unsigned long flags;
	bool wake;

	spin_lock_irqsave(&ring->lock, flags);
	wake = ring->serving && blktap_ring_push(ring);
	spin_unlock_irqrestore(&ring->lock, flags);
	if (wake)
		blktap_ring_wake(ring, EPOLLIN | EPOLLRDNORM);
}

/*
 * There is no limit of time: the process may wait for storage that comes back
 * after minutes. If it does not answer for another reason, it can be killed.
 */
static const struct blk_mq_ops blktap_mq_ops = {
	.queue_rq = blktap_queue_rq,
	.commit_rqs = blktap_commit_rqs,
};

/* What the process answered. The request is the caller's alone. */
void blktap_disk_finish(struct blktap_ring *ring, struct request *rq, u8 operation, s16 status)
{
	blk_status_t result = BLK_STS_OK;

	if (status == BLKTAP_RSP_NOTSUPP) {
		result = BLK_STS_NOTSUPP;
		if (operation == BLKTAP_OP_TRIM)
			blk_queue_disable_discard(rq->q);
		if (operation == BLKTAP_OP_ZEROES)
			blk_queue_disable_write_zeroes(rq->q);
	} else if (status != BLKTAP_RSP_OKAY) {
		result = BLK_STS_IOERR;
	} else if (operation == BLKTAP_OP_READ) {
		blktap_copy(ring, rq, false);
	}
	if (result && READ_ONCE(blktap_verbosity) >= 2)
		pr_info_ratelimited("blktap%d: operation %u at sector %llu failed: %d\n",
				    ring->minor, operation, (u64)blk_rq_pos(rq), status);
	blk_mq_end_request(rq, result);
}

/* ---- the disk's own life ---- */

/* Both are called with the disk's open_mutex held, and not after blktap_disk_end. */
static BLKTAP_OPEN(blktap_open)
{
	struct blktap_ring *ring = BLKTAP_OPEN_DISK->private_data;
	int err = -ENXIO;

	if (!ring)
		return err;
	spin_lock_irq(&ring->lock);
	if (ring->serving) {
		ring->openers++;
		err = 0;
	}
	spin_unlock_irq(&ring->lock);
	return err;
}

static BLKTAP_RELEASE(blktap_release)
{
	struct blktap_ring *ring = disk->private_data;
	bool removable;

	/* A file that outlived its disk. */
	if (!ring)
		return;
	spin_lock_irq(&ring->lock);
	ring->openers--;
	removable = ring->remove_wanted && !ring->openers;
	spin_unlock_irq(&ring->lock);
	if (removable)
		blktap_ring_wake(ring, EPOLLPRI);
}

static char *blktap_devnode(struct gendisk *disk, umode_t *mode)
{
	if (mode)
		*mode = 0600;
	return kasprintf(GFP_KERNEL, "xen/blktap-2/tapdev%d", disk->first_minor);
}

/* The last reference to the disk is gone. */
static void blktap_free_disk(struct gendisk *disk)
{
	module_put(THIS_MODULE);
}

static const struct block_device_operations blktap_disk_ops = {
	.owner = THIS_MODULE,
	.open = blktap_open,
	.release = blktap_release,
	.devnode = blktap_devnode,
	.free_disk = blktap_free_disk,
};

/* tda ... tdz, tdaa ...: digits of base 26 without a zero. */
static void blktap_disk_name(char *name, unsigned int minor)
{
	char letters[8];
	int n = 0, at = 2;

	do {
		letters[n++] = 'a' + minor % 26;
		minor /= 26;
	} while (minor-- > 0);
	name[0] = 't';
	name[1] = 'd';
	while (n > 0)
		name[at++] = letters[--n];
	name[at] = 0;
}

static bool blktap_physical(u32 size, u32 sector_size)
{
	return is_power_of_2(size) && size >= sector_size && size <= BLKTAP_PHYSICAL_MAX;
}

static int blktap_limits(struct blktap_info *info, struct blktap_limits *l)
{
	u32 size = info->sector_size;

	if (!is_power_of_2(size) || size < 512 || size > 4096)
		return -EINVAL;
	if (!info->capacity || info->capacity > LLONG_MAX >> SECTOR_SHIFT ||
	    info->capacity & ((size >> SECTOR_SHIFT) - 1))
		return -EINVAL;
	l->logical = size;
	l->physical = size;
	l->hw_sectors = BLKTAP_REQUEST_SECTORS;
	if (info->flags & BLKTAP_FLAG_PHYS) {
		if (!blktap_physical(info->phys_block_size, size))
			return -EINVAL;
		l->physical = info->phys_block_size;
		l->physical_offset = info->phys_block_offset;
	} else if (blktap_physical(info->physical_sector_size, size)) {
		l->physical = info->physical_sector_size;
	}
	if (info->flags & BLKTAP_FLAG_TRIM) {
		l->discard_granularity = info->trim_block_size ?: size;
		if (!is_power_of_2(l->discard_granularity) || l->discard_granularity < size)
			return -EINVAL;
		l->discard_offset = info->trim_block_offset;
		l->discard_sectors = round_down(BLKTAP_RANGE_SECTORS,
						l->discard_granularity >> SECTOR_SHIFT);
	}
	if (info->flags & BLKTAP_FLAG_ZEROES)
		l->zeroes_sectors = round_down(BLKTAP_RANGE_SECTORS, size >> SECTOR_SHIFT);
	l->cache = info->flags & BLKTAP_FLAG_FLUSH;
	l->fua = info->flags & BLKTAP_FLAG_FUA;
	return 0;
}

static void blktap_serve(struct blktap_ring *ring, bool by_level, bool serve)
{
	spin_lock_irq(&ring->lock);
	/* A ring that died meanwhile stays dead: its disk answers EIO, and the worker ends it. */
	ring->serving = serve && ring->state == BLKTAP_MAPPED;
	ring->by_level = by_level;
	ring->remove_wanted = false;
	ring->openers = 0;
	spin_unlock_irq(&ring->lock);
}

static int blktap_disk_add(struct blktap_ring *ring, struct blktap_info *info,
			   struct blktap_limits *limits)
{
	struct gendisk *disk;
	int err;

	memset(&ring->tags, 0, sizeof(ring->tags));
	ring->tags.ops = &blktap_mq_ops;
	ring->tags.nr_hw_queues = 1;
	ring->tags.queue_depth = BLKTAP_REQUESTS;
	ring->tags.numa_node = NUMA_NO_NODE;
	ring->tags.flags = BLKTAP_MQ_FLAGS;
	err = blk_mq_alloc_tag_set(&ring->tags);
	if (err)
		return err;
	disk = blktap_alloc_disk(&ring->tags, limits, ring);
	if (IS_ERR(disk)) {
		err = PTR_ERR(disk);
		goto no_disk;
	}
	disk->major = blktap_bdev_major;
	disk->first_minor = ring->minor;
	disk->minors = 1;
	/* To look for partitions is to read, and the process that answers is in here. */
	disk->flags |= GENHD_FL_NO_PART;
	disk->fops = &blktap_disk_ops;
	disk->private_data = ring;
	blktap_disk_name(disk->disk_name, ring->minor);
	set_capacity(disk, info->capacity);
	set_disk_ro(disk, info->flags & BLKTAP_FLAG_RO);

	blktap_serve(ring, info->flags & BLKTAP_FLAG_LEVEL, true);
	/* Until its last reference is gone. The caller has a file of ours open. */
	__module_get(THIS_MODULE);
	err = add_disk(disk);
	/* Sizes were checked: so it says that it had no memory for a name. */
	if (err == -EINVAL)
		err = -ENOMEM;
	if (err)
		goto not_added;
	ring->disk = disk;
	return 0;

not_added:
	module_put(THIS_MODULE);
	blktap_serve(ring, false, false);
	put_disk(disk);
no_disk:
	blk_mq_free_tag_set(&ring->tags);
	return err;
}

int blktap_disk_create(struct blktap_ring *ring, struct blktap_info *info)
{
	struct blktap_limits limits = {};
	int err;

	err = blktap_limits(info, &limits);
	if (err)
		return err;
	mutex_lock(&ring->disk_lock);
	if (ring->disk)
		err = -EEXIST;
	else if (READ_ONCE(ring->state) != BLKTAP_MAPPED)
		err = -EIO;
	else
		err = blktap_disk_add(ring, info, &limits);
	if (!err && READ_ONCE(blktap_verbosity) >= 1)
		pr_info("blktap%d: disk of %llu sectors, flags %llx\n", ring->minor,
			info->capacity, info->flags);
	mutex_unlock(&ring->disk_lock);
	return err;
}

/* disk_lock is held. All requests fail by now, or there are none: nothing here can wait. */
static void blktap_disk_del(struct blktap_ring *ring)
{
	struct gendisk *disk = ring->disk;

	del_gendisk(disk);
	mutex_lock(&disk->open_mutex);
	disk->private_data = NULL;
	mutex_unlock(&disk->open_mutex);
	blk_mq_free_tag_set(&ring->tags);
	put_disk(disk);
	ring->disk = NULL;
	if (READ_ONCE(blktap_verbosity) >= 1)
		pr_info("blktap%d: disk removed\n", ring->minor);
}

/* By the process that answers the requests: must not wait for one. */
int blktap_disk_remove(struct blktap_ring *ring)
{
	struct gendisk *disk;
	bool busy = true;

	mutex_lock(&ring->disk_lock);
	disk = ring->disk;
	if (!disk) {
		mutex_unlock(&ring->disk_lock);
		return 0;
	}
	/* The last closer holds it while it writes dirty pages back, through the caller. */
	if (mutex_trylock(&disk->open_mutex)) {
		spin_lock_irq(&ring->lock);
		busy = ring->openers || ring->outstanding;
		if (!busy)
			ring->serving = false;
		spin_unlock_irq(&ring->lock);
		mutex_unlock(&disk->open_mutex);
	}
	if (busy) {
		spin_lock_irq(&ring->lock);
		ring->remove_wanted = true;
		spin_unlock_irq(&ring->lock);
	} else {
		blktap_disk_del(ring);
	}
	mutex_unlock(&ring->disk_lock);
	return busy ? -EBUSY : 0;
}

/* By the worker, when the ring is dead: every request fails. */
void blktap_disk_end(struct blktap_ring *ring)
{
	mutex_lock(&ring->disk_lock);
	if (ring->disk) {
		/* File systems give up now, rather than write what they have to a dead disk. */
		blk_mark_disk_dead(ring->disk);
		blktap_disk_del(ring);
	}
	mutex_unlock(&ring->disk_lock);
}
