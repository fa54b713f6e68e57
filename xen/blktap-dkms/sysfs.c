// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/class/blktap2. Pools are in pool.c.
 */
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/xarray.h>

#include "blktap.h"
#include "compat.h"

/* ---- of one minor ---- */

static ssize_t name_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct blktap *tap = dev_get_drvdata(dev);
	int n;

	mutex_lock(&blktap_lock);
	if (tap->name[0])
		n = sysfs_emit(buf, "%s\n", tap->name);
	else
		n = sysfs_emit(buf, "%d\n", tap->minor);
	mutex_unlock(&blktap_lock);
	return n;
}

static ssize_t name_store(struct device *dev, struct device_attribute *attr, const char *buf,
			  size_t size)
{
	struct blktap *tap = dev_get_drvdata(dev);
	size_t n = strcspn(buf, "\n");

	if (n >= sizeof(tap->name))
		return -ENAMETOOLONG;
	mutex_lock(&blktap_lock);
	memcpy(tap->name, buf, n);
	tap->name[n] = 0;
	mutex_unlock(&blktap_lock);
	return size;
}
static DEVICE_ATTR_RW(name);

static ssize_t task_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct blktap *tap = dev_get_drvdata(dev);
	int n = 0;

	mutex_lock(&blktap_lock);
	if (tap->ring && !tap->ring->released)
		n = sysfs_emit(buf, "%d\n", pid_vnr(tap->ring->task));
	mutex_unlock(&blktap_lock);
	return n;
}
static DEVICE_ATTR_RO(task);

static int blktap_describe(struct blktap_ring *ring, char *buf)
{
	static const char * const states[] = { "not mapped", "mapped", "dead" };
	int n, i;

	spin_lock_irq(&ring->lock);
	n = sysfs_emit(buf, "ring: %s%s\n", states[ring->state],
		       ring->broken ? ", broken" : "");
	n += sysfs_emit_at(buf, n, "disk: %s, opened %u times%s\n",
			   ring->serving ? "yes" : "no", ring->openers,
			   ring->remove_wanted ? ", to be removed" : "");
	n += sysfs_emit_at(buf, n, "requests: %u, pushed %u, answered %u, outstanding %u\n",
			   ring->req_prod, ring->pushed, READ_ONCE(ring->rsp_cons),
			   ring->outstanding);
	for (i = 0; i < BLKTAP_REQUESTS; i++) {
		struct blktap_slot *slot = &ring->slots[i];

		if (slot->rq)
			n += sysfs_emit_at(buf, n, "%d: operation %u, request %u\n", i,
					   slot->operation, slot->number);
	}
	spin_unlock_irq(&ring->lock);
	return n;
}

static ssize_t debug_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct blktap *tap = dev_get_drvdata(dev);
	int n;

	mutex_lock(&blktap_lock);
	if (tap->ring)
		n = blktap_describe(tap->ring, buf);
	else
		n = sysfs_emit(buf, "ring: not open\n");
	mutex_unlock(&blktap_lock);
	return n;
}
static DEVICE_ATTR_RO(debug);

static ssize_t remove_store(struct device *dev, struct device_attribute *attr, const char *buf,
			    size_t size)
{
	struct blktap *tap = dev_get_drvdata(dev);
	ssize_t result = -ENXIO;

	mutex_lock(&blktap_lock);
	if (tap->ring && !tap->ring->released) {
		blktap_ring_ask_to_close(tap->ring);
		result = size;
	}
	mutex_unlock(&blktap_lock);
	return result;
}
static DEVICE_ATTR_WO(remove);

static struct attribute *blktap_attrs[] = {
	&dev_attr_name.attr,
	&dev_attr_task.attr,
	&dev_attr_debug.attr,
	&dev_attr_pool.attr,
	&dev_attr_remove.attr,
	NULL,
};
ATTRIBUTE_GROUPS(blktap);

/* ---- of all ---- */

static ssize_t verbosity_show(BLKTAP_CLASS *class, BLKTAP_CLASS_ATTR *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(blktap_verbosity));
}

static ssize_t verbosity_store(BLKTAP_CLASS *class, BLKTAP_CLASS_ATTR *attr, const char *buf,
			       size_t size)
{
	unsigned int level;
	int err;

	err = kstrtouint(buf, 0, &level);
	if (err)
		return err;
	WRITE_ONCE(blktap_verbosity, level);
	return size;
}
static CLASS_ATTR_RW(verbosity);

static ssize_t devices_show(BLKTAP_CLASS *class, BLKTAP_CLASS_ATTR *attr, char *buf)
{
	struct blktap *tap;
	unsigned long minor;
	int n = 0;

	mutex_lock(&blktap_lock);
	xa_for_each(&blktap_taps, minor, tap) {
		if (!tap->ring || !READ_ONCE(tap->ring->serving))
			continue;
		/* Whole lines only. */
		if (n > PAGE_SIZE - BLKTAP_NAME_MAX - 8)
			break;
		if (tap->name[0])
			n += sysfs_emit_at(buf, n, "%lu %s\n", minor, tap->name);
		else
			n += sysfs_emit_at(buf, n, "%lu %lu\n", minor, minor);
	}
	mutex_unlock(&blktap_lock);
	return n;
}
static CLASS_ATTR_RO(devices);

static struct attribute *blktap_class_attrs[] = {
	&class_attr_verbosity.attr,
	&class_attr_devices.attr,
	NULL,
};
ATTRIBUTE_GROUPS(blktap_class);

static char *blktap_class_devnode(BLKTAP_DEVNODE_DEVICE *dev, umode_t *mode)
{
	if (mode)
		*mode = 0600;
	return kasprintf(GFP_KERNEL, "xen/blktap-2/blktap%u", MINOR(dev->devt));
}

struct class blktap_class = {
	.name = "blktap2",
	BLKTAP_CLASS_OWNER
	.class_groups = blktap_class_groups,
	.dev_groups = blktap_groups,
	.devnode = blktap_class_devnode,
};
