// SPDX-License-Identifier: GPL-2.0
/*
 * The ring device: what a process opens, maps, and answers requests through.
 *
 * Nothing that is read from the shared pages is believed: req_prod and
 * rsp_cons are kept here, a response is copied once and then checked.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "blktap.h"
#include "compat.h"

#define BLKTAP_GONE (EPOLLIN | EPOLLRDNORM | EPOLLERR | EPOLLHUP)

static void blktap_ring_release_memory(struct kref *ref)
{
	struct blktap_ring *ring = container_of(ref, struct blktap_ring, ref);
	int i;

	/* A page that device I/O still uses lives until that is over. */
	for (i = 0; i < BLKTAP_PAGES && ring->pages[i]; i++)
		put_page(ring->pages[i]);
	put_pid(ring->task);
	kvfree(ring);
}

void blktap_ring_put(struct blktap_ring *ring)
{
	kref_put(&ring->ref, blktap_ring_release_memory);
}

void blktap_ring_wake(struct blktap_ring *ring, __poll_t events)
{
	if (wq_has_sleeper(&ring->wait))
		wake_up_interruptible_poll(&ring->wait, events);
}

/* The worker's part of the end: the disk. */
static void blktap_ring_end(struct work_struct *work)
{
	struct blktap_ring *ring = container_of(work, struct blktap_ring, end);

	blktap_disk_end(ring);
	kref_get(&ring->ref);
	complete_all(&ring->gone);
	blktap_ring_put(ring);
}

static void __blktap_ring_kill(struct blktap_ring *ring, bool broken)
{
	struct request *orphans[BLKTAP_REQUESTS];
	unsigned long flags;
	int i, n = 0;

	spin_lock_irqsave(&ring->lock, flags);
	if (ring->state == BLKTAP_DEAD) {
		spin_unlock_irqrestore(&ring->lock, flags);
		return;
	}
	ring->state = BLKTAP_DEAD;
	ring->broken = broken;
	ring->serving = false;
	for (i = 0; i < BLKTAP_REQUESTS; i++) {
		if (ring->slots[i].rq)
			orphans[n++] = ring->slots[i].rq;
		ring->slots[i].rq = NULL;
	}
	ring->outstanding = 0;
	spin_unlock_irqrestore(&ring->lock, flags);

	for (i = 0; i < n; i++)
		blk_mq_end_request(orphans[i], BLK_STS_IOERR);
	queue_work(blktap_wq, &ring->end);
	blktap_ring_wake(ring, BLKTAP_GONE);
}

/*
 * No request gets out, and none stays in. Does not sleep: it may be called
 * with the mmap lock held, by a process that is dying.
 */
void blktap_ring_kill(struct blktap_ring *ring)
{
	__blktap_ring_kill(ring, false);
}

static void blktap_ring_break(struct blktap_ring *ring, const char *why, u64 number)
{
	pr_warn_ratelimited("blktap%d: ring closed: %s (%llu)\n", ring->minor, why, number);
	__blktap_ring_kill(ring, true);
}

/*
 * Tells the process of all requests in the ring; the lock is held. True: wake
 * it. It counts on req_prod being written after the requests.
 */
bool blktap_ring_push(struct blktap_ring *ring)
{
	u32 old = ring->pushed, new = ring->req_prod, event;

	if (old == new)
		return false;
	ring->pushed = new;
	/* After the requests themselves; pairs with the process's read of req_prod. */
	smp_store_release(&ring->sring->req_prod, new);
	if (!ring->by_level)
		return true;
	/* Pairs with the barrier between its req_event and its last look at req_prod. */
	smp_mb();
	event = READ_ONCE(ring->sring->req_event);
	return new - event < new - old;
}

void blktap_ring_ask_to_close(struct blktap_ring *ring)
{
	WRITE_ONCE(ring->sring->message, BLKTAP_MSG_CLOSE);
	blktap_ring_wake(ring, EPOLLIN | EPOLLRDNORM);
}

/* ---- responses ---- */

/* Takes the response at rsp_cons. False: the ring is closed. */
static bool blktap_take_response(struct blktap_ring *ring)
{
	struct blktap_response *at = &ring->sring->entry[ring->rsp_cons % BLKTAP_REQUESTS].rsp;
	u64 id = READ_ONCE(at->id);
	u8 operation = READ_ONCE(at->operation);
	s16 status = READ_ONCE(at->status);
	struct blktap_slot *slot;
	struct request *rq;
	unsigned long flags;
	bool removable;

	if (id >= BLKTAP_REQUESTS) {
		blktap_ring_break(ring, "a response names no request", id);
		return false;
	}
	slot = &ring->slots[array_index_nospec(id, BLKTAP_REQUESTS)];
	spin_lock_irqsave(&ring->lock, flags);
	if (ring->state == BLKTAP_DEAD) {
		spin_unlock_irqrestore(&ring->lock, flags);
		return false;
	}
	rq = slot->rq;
	if (!rq || (s32)(slot->number - ring->pushed) >= 0) {
		spin_unlock_irqrestore(&ring->lock, flags);
		blktap_ring_break(ring, "a response to a request that is not outstanding", id);
		return false;
	}
	/* From here on the request is ours alone. */
	slot->rq = NULL;
	ring->outstanding--;
	WRITE_ONCE(ring->rsp_cons, ring->rsp_cons + 1);
	removable = ring->remove_wanted && !ring->openers && !ring->outstanding;
	spin_unlock_irqrestore(&ring->lock, flags);

	if (operation != slot->operation)
		status = BLKTAP_RSP_ERROR;
	blktap_disk_finish(ring, rq, slot->operation, status);
	if (removable)
		blktap_ring_wake(ring, EPOLLPRI);
	return true;
}

static int blktap_respond(struct blktap_ring *ring)
{
	u32 prod, ahead;
	int err = 0;

	mutex_lock(&ring->respond_lock);
	/*
	 * Once: what is added meanwhile has a RESPOND of its own. Before the
	 * responses; pairs with the process's write of rsp_prod.
	 */
	prod = smp_load_acquire(&ring->sring->rsp_prod);
	spin_lock_irq(&ring->lock);
	ahead = ring->pushed - ring->rsp_cons;
	spin_unlock_irq(&ring->lock);
	if (prod - ring->rsp_cons > ahead) {
		blktap_ring_break(ring, "rsp_prod is beyond the requests", prod);
		err = -EIO;
	}
	while (!err && ring->rsp_cons != prod) {
		if (!blktap_take_response(ring))
			err = -EIO;
	}
	mutex_unlock(&ring->respond_lock);
	return err;
}

/* ---- the mapping ---- */

static void blktap_vma_open(struct vm_area_struct *vma)
{
	struct blktap_ring *ring = vma->vm_private_data;

	spin_lock_irq(&ring->lock);
	ring->mappings++;
	spin_unlock_irq(&ring->lock);
}

static void blktap_vma_close(struct vm_area_struct *vma)
{
	struct blktap_ring *ring = vma->vm_private_data;
	bool last;

	spin_lock_irq(&ring->lock);
	last = --ring->mappings == 0;
	if (last && ring->kept) {
		/* Requests wait in it, until it is mapped again or its file is closed. */
		ring->mm = NULL;
		last = false;
	}
	spin_unlock_irq(&ring->lock);
	if (last)
		blktap_ring_kill(ring);
}

/* Half a ring is of no use to anybody. */
static int blktap_vma_may_split(struct vm_area_struct *vma, unsigned long addr)
{
	return -EINVAL;
}

/* All pages are there from the beginning; one may have been dropped (MADV_DONTNEED). */
static vm_fault_t blktap_vma_fault(struct vm_fault *vmf)
{
	struct blktap_ring *ring = vmf->vma->vm_private_data;

	if (vmf->pgoff >= BLKTAP_PAGES)
		return VM_FAULT_SIGBUS;
	vmf->page = ring->pages[vmf->pgoff];
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct blktap_vm_ops = {
	.open = blktap_vma_open,
	.close = blktap_vma_close,
	.may_split = blktap_vma_may_split,
	.fault = blktap_vma_fault,
};

/*
 * By the next program of its process. What is left of the memory of the one
 * before may go a moment later. The lock is held.
 */
static bool blktap_may_map_again(struct blktap_ring *ring)
{
	return ring->kept && ring->mm != current->mm && ring->task == task_tgid(current);
}

static int blktap_ring_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct blktap_ring *ring = file->private_data;
	unsigned long need = VM_SHARED | VM_READ | VM_WRITE, left = BLKTAP_PAGES;
	int err = 0;

	if (vma->vm_pgoff || vma_pages(vma) != BLKTAP_PAGES || (vma->vm_flags & need) != need)
		return -EINVAL;

	spin_lock_irq(&ring->lock);
	if (ring->state == BLKTAP_DEAD) {
		err = -EIO;
	} else if (ring->state == BLKTAP_MAPPED && !blktap_may_map_again(ring)) {
		err = -EBUSY;
	} else {
		ring->state = BLKTAP_MAPPED;
		ring->mappings++;
		ring->mm = current->mm;
	}
	spin_unlock_irq(&ring->lock);
	if (err)
		return err;

	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	err = vm_insert_pages(vma, vma->vm_start, ring->pages, &left);
	if (err) {
		/* No memory for page tables. What was mapped goes; this ring is over. */
		blktap_ring_kill(ring);
		return err;
	}
	vma->vm_private_data = ring;
	vma->vm_ops = &blktap_vm_ops;
	return 0;
}

/* ---- the file ---- */

static struct blktap_ring *blktap_ring_new(int minor)
{
	struct blktap_ring *ring;
	int i;

	ring = kvzalloc(sizeof(*ring), GFP_KERNEL);
	if (!ring)
		return ERR_PTR(-ENOMEM);
	ring->minor = minor;
	kref_init(&ring->ref);
	init_waitqueue_head(&ring->wait);
	mutex_init(&ring->disk_lock);
	mutex_init(&ring->respond_lock);
	spin_lock_init(&ring->lock);
	INIT_WORK(&ring->end, blktap_ring_end);
	init_completion(&ring->gone);
	for (i = 0; i < BLKTAP_PAGES; i++) {
		ring->pages[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!ring->pages[i]) {
			blktap_ring_put(ring);
			return ERR_PTR(-ENOMEM);
		}
		cond_resched();
	}
	ring->sring = page_address(ring->pages[0]);
	ring->sring->req_event = 1;
	ring->sring->rsp_event = 1;
	ring->task = get_pid(task_tgid(current));
	return ring;
}

static int blktap_ring_open(struct inode *inode, struct file *file)
{
	struct blktap_ring *ring;
	struct blktap *tap;

	ring = blktap_ring_new(iminor(inode));
	if (IS_ERR(ring))
		return PTR_ERR(ring);
	tap = blktap_lock_idle(ring->minor);
	if (IS_ERR(tap)) {
		blktap_ring_put(ring);
		return PTR_ERR(tap);
	}
	tap->ring = ring;
	mutex_unlock(&blktap_lock);
	file->private_data = ring;
	return nonseekable_open(inode, file);
}

static int blktap_ring_release(struct inode *inode, struct file *file)
{
	struct blktap_ring *ring = file->private_data;

	blktap_ring_kill(ring);
	/* After this the ring belongs to whoever wants the minor next. */
	mutex_lock(&blktap_lock);
	ring->released = true;
	mutex_unlock(&blktap_lock);
	return 0;
}

static int blktap_may(struct blktap_ring *ring)
{
	int err = 0;

	spin_lock_irq(&ring->lock);
	if (ring->broken)
		err = -EIO;
	else if (ring->state != BLKTAP_MAPPED || ring->mm != current->mm)
		err = -EACCES;
	spin_unlock_irq(&ring->lock);
	return err;
}

/* Before an exec: the next program maps the ring again. */
static int blktap_keep(struct blktap_ring *ring, unsigned long keep)
{
	if (keep > 1)
		return -EINVAL;
	spin_lock_irq(&ring->lock);
	ring->kept = keep;
	spin_unlock_irq(&ring->lock);
	return 0;
}

static int blktap_create(struct blktap_ring *ring, void __user *from)
{
	struct blktap_info info = {};
	u64 asked;

	if (copy_from_user(&info, from, offsetofend(struct blktap_info, flags)))
		return -EFAULT;
	asked = info.flags;
	if ((asked & BLKTAP_FLAG_PHYS) &&
	    copy_from_user(&info.phys_block_size,
			   from + offsetof(struct blktap_info, phys_block_size), 8))
		return -EFAULT;
	if ((asked & BLKTAP_FLAG_TRIM) &&
	    copy_from_user(&info.trim_block_size,
			   from + offsetof(struct blktap_info, trim_block_size), 8))
		return -EFAULT;
	info.flags &= BLKTAP_FLAGS;
	if (!(info.flags & BLKTAP_FLAG_FLUSH))
		info.flags &= ~BLKTAP_FLAG_FUA;
	/* Before there is a disk to be taken back. */
	if (info.flags != asked &&
	    copy_to_user(from + offsetof(struct blktap_info, flags), &info.flags, 8))
		return -EFAULT;
	return blktap_disk_create(ring, &info);
}

static int blktap_create_old(struct blktap_ring *ring, void __user *from)
{
	struct blktap_info_old *old;
	struct blktap_info info = {};
	struct blktap *tap;
	int err = -EFAULT;

	old = kmalloc(sizeof(*old), GFP_KERNEL);
	if (!old)
		return -ENOMEM;
	if (copy_from_user(old, from, sizeof(*old)))
		goto out;
	err = -EINVAL;
	info.capacity = old->capacity;
	info.sector_size = old->sector_size;
	if (info.sector_size != old->sector_size)
		goto out;
	err = blktap_disk_create(ring, &info);
	if (err)
		goto out;
	mutex_lock(&blktap_lock);
	/* There as long as the ring's file is open. */
	tap = xa_load(&blktap_taps, ring->minor);
	strscpy(tap->name, old->name, sizeof(tap->name));
	mutex_unlock(&blktap_lock);
out:
	kfree(old);
	return err;
}

static long blktap_ring_ioctl(struct file *file, unsigned int command, unsigned long arg)
{
	struct blktap_ring *ring = file->private_data;
	void __user *from = (void __user *)arg;
	int err;

	err = blktap_may(ring);
	if (err)
		return err;
	switch (command) {
	case BLKTAP_RING_RESPOND:
		return blktap_respond(ring);
	case BLKTAP_RING_CREATE:
		return blktap_create(ring, from);
	case BLKTAP_RING_CREATE_OLD:
		return blktap_create_old(ring, from);
	case BLKTAP_RING_REMOVE:
		return blktap_disk_remove(ring);
	case BLKTAP_RING_KEEP:
		return blktap_keep(ring, arg);
	}
	return -ENOTTY;
}

static __poll_t blktap_ring_poll(struct file *file, poll_table *wait)
{
	struct blktap_ring *ring = file->private_data;
	__poll_t events = 0;
	bool more;

	poll_wait(file, &ring->wait, wait);
	spin_lock_irq(&ring->lock);
	if (ring->state == BLKTAP_DEAD) {
		events = BLKTAP_GONE;
	} else if (ring->state == BLKTAP_MAPPED) {
		if (ring->by_level) {
			more = (s32)(ring->pushed - READ_ONCE(ring->sring->req_event)) >= 0;
		} else {
			more = ring->pushed != ring->poll_seen;
			ring->poll_seen = ring->pushed;
		}
		if (more || READ_ONCE(ring->sring->message))
			events = EPOLLIN | EPOLLRDNORM;
		if (ring->remove_wanted && !ring->openers && !ring->outstanding)
			events |= EPOLLPRI;
	}
	spin_unlock_irq(&ring->lock);
	return events;
}

const struct file_operations blktap_ring_fops = {
	.owner = THIS_MODULE,
	.open = blktap_ring_open,
	.release = blktap_ring_release,
	.mmap = blktap_ring_mmap,
	.poll = blktap_ring_poll,
	.unlocked_ioctl = blktap_ring_ioctl,
	.compat_ioctl = blktap_ring_ioctl,
};
