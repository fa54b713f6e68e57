// SPDX-License-Identifier: GPL-2.0
/*
 * The module, its control device, and the minors.
 */
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/cdev.h>
#include <linux/kdev_t.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "blktap.h"
#include "compat.h"

/* Which minors there are, their rings and names. */
DEFINE_MUTEX(blktap_lock);
DEFINE_XARRAY(blktap_taps);
struct workqueue_struct *blktap_wq;
int blktap_ring_major;
int blktap_bdev_major;

static DEFINE_IDA(blktap_minors);
static struct cdev *blktap_ring_cdev;

/*
 * Returns a minor that has no ring, with blktap_lock held. If its last ring
 * was closed but its disk is not gone yet, waits for that: it is a matter of
 * milliseconds, as the disk's requests fail.
 */
struct blktap *blktap_lock_idle(int minor)
{
	struct blktap_ring *ring;
	struct blktap *tap;
	int err;

	for (;;) {
		mutex_lock(&blktap_lock);
		tap = xa_load(&blktap_taps, minor);
		if (!tap) {
			err = -ENODEV;
			break;
		}
		ring = tap->ring;
		if (!ring)
			return tap;
		if (!ring->released) {
			err = -EBUSY;
			break;
		}
		if (completion_done(&ring->gone)) {
			tap->ring = NULL;
			blktap_ring_put(ring);
			return tap;
		}
		kref_get(&ring->ref);
		mutex_unlock(&blktap_lock);
		err = wait_for_completion_killable(&ring->gone);
		blktap_ring_put(ring);
		if (err)
			return ERR_PTR(err);
	}
	mutex_unlock(&blktap_lock);
	return ERR_PTR(err);
}

static void blktap_end(struct blktap *tap)
{
	/* Waits for readers of sysfs files, which take blktap_lock. */
	device_unregister(tap->dev);
	blktap_pool_leave(tap);
	ida_free(&blktap_minors, tap->minor);
	kfree(tap);
	module_put(THIS_MODULE);
}

static int blktap_free(unsigned long minor)
{
	struct blktap *tap;

	if (minor >= BLKTAP_MINORS)
		return -EINVAL;
	tap = blktap_lock_idle(minor);
	if (IS_ERR(tap))
		return PTR_ERR(tap);
	xa_erase(&blktap_taps, minor);
	mutex_unlock(&blktap_lock);
	blktap_end(tap);
	return 0;
}

static struct blktap *blktap_new(void)
{
	struct blktap *tap;
	int err;

	tap = kzalloc(sizeof(*tap), GFP_KERNEL);
	if (!tap)
		return ERR_PTR(-ENOMEM);
	tap->minor = ida_alloc_max(&blktap_minors, BLKTAP_MINORS - 1, GFP_KERNEL);
	if (tap->minor < 0) {
		kfree(tap);
		return ERR_PTR(-ENOMEM);
	}
	err = blktap_pool_enter(tap);
	if (err)
		goto no_pool;
	/* A minor is in use until it is given back. The caller has a file of ours. */
	__module_get(THIS_MODULE);
	tap->dev = device_create(&blktap_class, NULL, MKDEV(blktap_ring_major, tap->minor), tap,
				 "blktap/blktap%d", tap->minor);
	if (IS_ERR(tap->dev)) {
		err = PTR_ERR(tap->dev);
		goto no_device;
	}
	mutex_lock(&blktap_lock);
	err = xa_err(xa_store(&blktap_taps, tap->minor, tap, GFP_KERNEL));
	mutex_unlock(&blktap_lock);
	if (err) {
		blktap_end(tap);
		return ERR_PTR(err);
	}
	return tap;

no_device:
	module_put(THIS_MODULE);
	blktap_pool_leave(tap);
no_pool:
	ida_free(&blktap_minors, tap->minor);
	kfree(tap);
	return ERR_PTR(err);
}

static int blktap_alloc(struct blktap_handle __user *to)
{
	struct blktap_handle handle = {
		.ring_major = blktap_ring_major,
		.bdev_major = blktap_bdev_major,
	};
	struct blktap *tap;

	tap = blktap_new();
	if (IS_ERR(tap))
		return PTR_ERR(tap);
	handle.minor = tap->minor;
	if (copy_to_user(to, &handle, sizeof(handle))) {
		/* Somebody may have opened it already; then it stays. */
		blktap_free(handle.minor);
		return -EFAULT;
	}
	return 0;
}

static long blktap_control_ioctl(struct file *file, unsigned int command, unsigned long arg)
{
	switch (command) {
	case BLKTAP_CTL_ALLOC:
		return blktap_alloc((struct blktap_handle __user *)arg);
	case BLKTAP_CTL_FREE:
		return blktap_free(arg);
	}
	return -ENOTTY;
}

static const struct file_operations blktap_control_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.unlocked_ioctl = blktap_control_ioctl,
	.compat_ioctl = blktap_control_ioctl,
};

/* Under this name tools look for it in /proc/misc. */
static struct miscdevice blktap_control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "blktap/control",
	.nodename = "xen/blktap-2/control",
	.mode = 0600,
	.fops = &blktap_control_fops,
	.groups = blktap_control_groups,
};

static int __init blktap_register_rings(void)
{
	dev_t first;
	int err;

	err = alloc_chrdev_region(&first, 0, BLKTAP_MINORS, "blktap2");
	if (err)
		return err;
	blktap_ring_major = MAJOR(first);
	blktap_ring_cdev = cdev_alloc();
	if (!blktap_ring_cdev) {
		unregister_chrdev_region(first, BLKTAP_MINORS);
		return -ENOMEM;
	}
	blktap_ring_cdev->owner = THIS_MODULE;
	blktap_ring_cdev->ops = &blktap_ring_fops;
	err = cdev_add(blktap_ring_cdev, first, BLKTAP_MINORS);
	if (err) {
		kobject_put(&blktap_ring_cdev->kobj);
		unregister_chrdev_region(first, BLKTAP_MINORS);
	}
	return err;
}

static void blktap_unregister_rings(void)
{
	cdev_del(blktap_ring_cdev);
	unregister_chrdev_region(MKDEV(blktap_ring_major, 0), BLKTAP_MINORS);
}

static int __init blktap_init(void)
{
	int err;

	blktap_wq = alloc_workqueue("blktap", WQ_UNBOUND, 0);
	if (!blktap_wq)
		return -ENOMEM;
	err = class_register(&blktap_class);
	if (err)
		goto no_class;
	err = register_blkdev(0, "tapdev");
	if (err < 0)
		goto no_disks;
	blktap_bdev_major = err;
	err = blktap_register_rings();
	if (err)
		goto no_rings;
	/* Last: from here on it is used. */
	err = blktap_control_register(&blktap_control);
	if (err)
		goto no_control;
	return 0;

no_control:
	blktap_unregister_rings();
no_rings:
	unregister_blkdev(blktap_bdev_major, "tapdev");
no_disks:
	class_unregister(&blktap_class);
no_class:
	destroy_workqueue(blktap_wq);
	return err;
}

/* Minors and disks hold references to the module: there are none. */
static void __exit blktap_exit(void)
{
	blktap_control_unregister(&blktap_control);
	blktap_unregister_rings();
	unregister_blkdev(blktap_bdev_major, "tapdev");
	class_unregister(&blktap_class);
	destroy_workqueue(blktap_wq);
	ida_destroy(&blktap_minors);
	xa_destroy(&blktap_taps);
}

module_init(blktap_init);
module_exit(blktap_exit);

MODULE_DESCRIPTION("Block devices served by a process through a ring of shared memory");
MODULE_AUTHOR("The tapdisk-rs developers");
MODULE_LICENSE("GPL");
MODULE_ALIAS("blktap2");
