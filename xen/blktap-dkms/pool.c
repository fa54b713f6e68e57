// SPDX-License-Identifier: GPL-2.0
/*
 * Pools: names and sizes that storage managers write and read.
 *
 * In the older modules rings shared the pages of a pool. Here every ring has
 * pages of its own, so a pool is a name, the size that was asked for, and the
 * minors that are in it. A pool is there while it is in use, and the one that
 * new minors get always is.
 */
#include <linux/kobject.h>
#include <linux/limits.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/xarray.h>

#include "blktap.h"

struct blktap_pool {
	struct kobject kobj;		/* its name is the pool's */
	struct list_head all;		/* and users: under blktap_pools_lock */
	unsigned int users;		/* minors, and being the default */
	bool sized;			/* and size: under blktap_lock */
	unsigned int size;		/* pages, as written */
};

/*
 * Taken before blktap_lock, and never by readers of a pool's files: its folder
 * goes with this lock held, and that waits for them.
 */
static DEFINE_MUTEX(blktap_pools_lock);
static LIST_HEAD(blktap_all_pools);
static struct kobject *blktap_pools;
static struct blktap_pool *blktap_default;

static struct blktap_pool *to_pool(struct kobject *kobj)
{
	return container_of(kobj, struct blktap_pool, kobj);
}

/* Data pages of its rings, and those of outstanding requests. */
static void blktap_pool_count(struct blktap_pool *pool, unsigned int *size, unsigned int *used)
{
	struct blktap *tap;
	unsigned long minor;

	*size = 0;
	*used = 0;
	mutex_lock(&blktap_lock);
	xa_for_each(&blktap_taps, minor, tap) {
		if (tap->pool != pool || !tap->ring)
			continue;
		*size += BLKTAP_PAGES - 1;
		*used += READ_ONCE(tap->ring->outstanding) * BLKTAP_SEGMENTS;
	}
	if (pool->sized)
		*size = pool->size;
	mutex_unlock(&blktap_lock);
}

static ssize_t size_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	unsigned int size, used;

	blktap_pool_count(to_pool(kobj), &size, &used);
	return sysfs_emit(buf, "%u\n", size);
}

static ssize_t size_store(struct kobject *kobj, struct kobj_attribute *attr, const char *buf,
			  size_t count)
{
	struct blktap_pool *pool = to_pool(kobj);
	unsigned int size;
	int err;

	err = kstrtouint(buf, 0, &size);
	if (err)
		return err;
	mutex_lock(&blktap_lock);
	pool->size = size;
	pool->sized = true;
	mutex_unlock(&blktap_lock);
	return count;
}

static ssize_t free_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	unsigned int size, used;

	blktap_pool_count(to_pool(kobj), &size, &used);
	return sysfs_emit(buf, "%u\n", size > used ? size - used : 0);
}

static struct kobj_attribute size_attr = __ATTR_RW(size);
static struct kobj_attribute free_attr = __ATTR_RO(free);

static struct attribute *blktap_pool_attrs[] = {
	&size_attr.attr,
	&free_attr.attr,
	NULL,
};
ATTRIBUTE_GROUPS(blktap_pool);

static void blktap_pool_release(struct kobject *kobj)
{
	kfree(to_pool(kobj));
}

static const struct kobj_type blktap_pool_type = {
	.release = blktap_pool_release,
	.sysfs_ops = &kobj_sysfs_ops,
	.default_groups = blktap_pool_groups,
};

/* Returns the pool of that name, which is made if it is not there, with one user more. */
static struct blktap_pool *blktap_pool_get(const char *name)
{
	struct blktap_pool *pool;
	int err;

	lockdep_assert_held(&blktap_pools_lock);
	list_for_each_entry(pool, &blktap_all_pools, all) {
		if (!strcmp(kobject_name(&pool->kobj), name)) {
			pool->users++;
			return pool;
		}
	}
	pool = kzalloc(sizeof(*pool), GFP_KERNEL);
	if (!pool)
		return ERR_PTR(-ENOMEM);
	err = kobject_init_and_add(&pool->kobj, &blktap_pool_type, blktap_pools, "%s", name);
	if (err) {
		kobject_put(&pool->kobj);
		return ERR_PTR(err);
	}
	list_add_tail(&pool->all, &blktap_all_pools);
	pool->users = 1;
	return pool;
}

static void blktap_pool_put(struct blktap_pool *pool)
{
	lockdep_assert_held(&blktap_pools_lock);
	if (--pool->users)
		return;
	list_del(&pool->all);
	/* Waits for readers of its files, which take blktap_lock. */
	kobject_del(&pool->kobj);
	kobject_put(&pool->kobj);
}

/* A pool by what was written: any text up to a line's end. It is the name of a folder. */
static struct blktap_pool *blktap_pool_written(const char *buf)
{
	size_t n = strcspn(buf, "\n");
	struct blktap_pool *pool;
	char *name;

	if (n > NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	name = kstrndup(buf, n, GFP_KERNEL);
	if (!name)
		return ERR_PTR(-ENOMEM);
	strreplace(name, '/', '!');
	if (!n || !strcmp(name, ".") || !strcmp(name, ".."))
		pool = ERR_PTR(-EINVAL);
	else
		pool = blktap_pool_get(name);
	kfree(name);
	return pool;
}

/* Puts what was written in the place of a pool; blktap_lock guards the place. */
static int blktap_pool_change(struct blktap_pool **place, const char *buf)
{
	struct blktap_pool *new, *old;

	mutex_lock(&blktap_pools_lock);
	new = blktap_pools ? blktap_pool_written(buf) : ERR_PTR(-ENODEV);
	if (!IS_ERR(new)) {
		mutex_lock(&blktap_lock);
		old = *place;
		*place = new;
		mutex_unlock(&blktap_lock);
		blktap_pool_put(old);
	}
	mutex_unlock(&blktap_pools_lock);
	return PTR_ERR_OR_ZERO(new);
}

static ssize_t blktap_pool_name(struct blktap_pool **place, char *buf)
{
	ssize_t n = -ENODEV;

	mutex_lock(&blktap_lock);
	if (*place)
		n = sysfs_emit(buf, "%s\n", kobject_name(&(*place)->kobj));
	mutex_unlock(&blktap_lock);
	return n;
}

/* ---- of a minor ---- */

int blktap_pool_enter(struct blktap *tap)
{
	int err = -ENODEV;

	mutex_lock(&blktap_pools_lock);
	if (blktap_default) {
		blktap_default->users++;
		tap->pool = blktap_default;
		err = 0;
	}
	mutex_unlock(&blktap_pools_lock);
	return err;
}

/* Nobody can reach the minor any more. */
void blktap_pool_leave(struct blktap *tap)
{
	mutex_lock(&blktap_pools_lock);
	blktap_pool_put(tap->pool);
	mutex_unlock(&blktap_pools_lock);
}

static ssize_t pool_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct blktap *tap = dev_get_drvdata(dev);

	return blktap_pool_name(&tap->pool, buf);
}

static ssize_t pool_store(struct device *dev, struct device_attribute *attr, const char *buf,
			  size_t size)
{
	struct blktap *tap = dev_get_drvdata(dev);
	int err = blktap_pool_change(&tap->pool, buf);

	return err ? err : size;
}
DEVICE_ATTR_RW(pool);

/* ---- of the control device ---- */

static ssize_t default_pool_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return blktap_pool_name(&blktap_default, buf);
}

static ssize_t default_pool_store(struct device *dev, struct device_attribute *attr,
				  const char *buf, size_t size)
{
	int err = blktap_pool_change(&blktap_default, buf);

	return err ? err : size;
}
static DEVICE_ATTR_RW(default_pool);

static struct attribute *blktap_control_attrs[] = {
	&dev_attr_default_pool.attr,
	NULL,
};

static const struct attribute_group blktap_control_group = {
	.attrs = blktap_control_attrs,
};

const struct attribute_group *blktap_control_groups[] = {
	&blktap_control_group,
	NULL,
};

static int blktap_pools_make(struct kobject *control)
{
	struct blktap_pool *pool;

	blktap_pools = kobject_create_and_add("pools", control);
	if (!blktap_pools)
		return -ENOMEM;
	pool = blktap_pool_get("default");
	if (IS_ERR(pool)) {
		kobject_put(blktap_pools);
		blktap_pools = NULL;
		return PTR_ERR(pool);
	}
	mutex_lock(&blktap_lock);
	blktap_default = pool;
	mutex_unlock(&blktap_lock);
	return 0;
}

/* Whoever comes between the two steps waits for the second. */
int blktap_control_register(struct miscdevice *control)
{
	bool registered;
	int err;

	mutex_lock(&blktap_pools_lock);
	err = misc_register(control);
	registered = !err;
	if (registered)
		err = blktap_pools_make(&control->this_device->kobj);
	mutex_unlock(&blktap_pools_lock);
	if (err && registered)
		misc_deregister(control);
	return err;
}

/* There are no minors: what is left is the default. */
void blktap_control_unregister(struct miscdevice *control)
{
	struct blktap_pool *pool;

	mutex_lock(&blktap_pools_lock);
	mutex_lock(&blktap_lock);
	pool = blktap_default;
	blktap_default = NULL;
	mutex_unlock(&blktap_lock);
	blktap_pool_put(pool);
	kobject_put(blktap_pools);
	blktap_pools = NULL;
	mutex_unlock(&blktap_pools_lock);
	misc_deregister(control);
}
