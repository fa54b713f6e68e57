# tapdisk-rs: build, try, test, measure, install.
#
#   make            the programs, in target/release
#   make demo       a VHD made, served, written, snapshotted and checked, before your eyes
#   make check      style, lints and fast tests of what was touched since BASE=HEAD; of everything (minutes) where
#                   nothing was, or with CHECK_ARGS=--all
#   make test       everything, the virtual machines as well
#   make test-vm    only what runs in virtual machines (no hardware virtualisation needed; tests/vm/README.md)
#   make test-iotests  QEMU's own tests of block devices against tapdisk and vhd-util (docs/foreign-suites.md)
#   make test-crashes   CUTS=1000 power cuts and KILLS=1000 kills under tapdisk on ext4 and XFS, in an emulator
#   make test-pressure  devices under memory pressure, with controls that must hang (tests/vm/pressure.py --help)
#   make fuzz       every parser under the fuzzer, FUZZ_SECONDS=60 each, guided by branches; FUZZ_ARGS=NAME for one
#   make xen-demo   Xen, dom0 and a guest with our disk, in an emulator (one to two minutes)
#   make bench      tapdisk beside qemu-nbd, nbdkit and fio on the raw file (BENCH_ARGS="--help" lists options);
#                   BENCH_ORIGINAL=PREFIX: beside blktap, too, of which a build is installed there
#   make bench-xen  a guest's disk on tapdisk, qdisk and xen-blkback, in an emulator: ratios, system calls a request
#   make bench-device  block devices: ublk, the blktap ring, loop, qemu-nbd and nbd.ko, in an emulator: ratios
#   make bench-vhd  vhd-util beside qemu-img and the disk's own limit
#   make install    PREFIX=/usr/local DESTDIR=
#   make rpm        the RPM packages for dom0 (glibc 2.17 and later), in target/rpm
#   make rpm-source the same from a source archive, for this system's C library
#   make deb        the Debian packages, in target/deb
#   make install-dkms   the kernel module's source, for DKMS (xen/blktap-dkms)
#   make deps       the Debian packages that demo, test and bench call, through apt, where missing
#
# Works as root and as an ordinary user; only `deps` (to install something) and `install` (to a system
# directory) need more.

PREFIX     ?= /usr/local
DESTDIR    ?=
SBINDIR    ?= $(PREFIX)/sbin
BINDIR     ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec
DATADIR    ?= $(PREFIX)/share
MANDIR     ?= $(DATADIR)/man
DOCDIR     ?= $(DATADIR)/doc/tapdisk-rs
ZSHDIR     ?= $(DATADIR)/zsh/site-functions
# Where systemd and others look does not move with PREFIX, except below /usr.
ifeq ($(PREFIX),/usr)
TMPFILESDIR  ?= /usr/lib/tmpfiles.d
UNITDIR      ?= /usr/lib/systemd/system
LOGROTATEDIR ?= /etc/logrotate.d
CONFDIR      ?= /etc/tapdisk-rs
UDEVDIR      ?= /usr/lib/udev/rules.d
SYSCTLDIR    ?= /usr/lib/sysctl.d
CRONDIR      ?= /etc/cron.daily
XENSCRIPTDIR ?= /etc/xen/scripts
else
TMPFILESDIR  ?= $(PREFIX)/lib/tmpfiles.d
UNITDIR      ?= $(PREFIX)/lib/systemd/system
LOGROTATEDIR ?= $(PREFIX)/etc/logrotate.d
CONFDIR      ?= $(PREFIX)/etc/tapdisk-rs
UDEVDIR      ?= $(PREFIX)/lib/udev/rules.d
SYSCTLDIR    ?= $(PREFIX)/lib/sysctl.d
CRONDIR      ?= $(PREFIX)/etc/cron.daily
XENSCRIPTDIR ?= $(PREFIX)/etc/xen/scripts
endif
# Of packaging/manifest.
PARTS        ?= core
# For files.sh. Not exported to all that runs below: a make that is called there, by a test or for a
# package, would take them for its own.
FOLDERS = $(foreach word,SBINDIR BINDIR LIBEXECDIR DATADIR MANDIR DOCDIR TMPFILESDIR UNITDIR \
    LOGROTATEDIR CONFDIR UDEVDIR SYSCTLDIR CRONDIR XENSCRIPTDIR ZSHDIR DESTDIR BIN,$(word)="$($(word))")

# rustup puts cargo where a non-login shell does not look.
CARGO  ?= $(shell command -v cargo || echo "$$HOME/.cargo/bin/cargo")
export CARGO
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),$(CURDIR)/target)
BIN    := $(TARGET)/release
PROGRAMS := $(BIN)/tap-ctl $(BIN)/tapdisk $(BIN)/vhd-util $(BIN)/qcow2-util \
    $(BIN)/cbt-util $(BIN)/td-util $(BIN)/tapback

BENCH_ARGS ?=

all: build

# Without the feature `canary` (tests/Cargo.toml), and so without bugs to plant.
build: linker
	$(CARGO) build --release --workspace --bins

# A Rust tool chain alone cannot link: it calls cc.
linker:
	@tests/deps.sh build

deps:
	@tests/deps.sh build cost demo test bench

demo: build
	@tests/deps.sh demo
	@tests/demo.sh "$(BIN)"

# Programs for an old dom0, which is x86_64.
OLD := $(if $(filter x86_64,$(shell uname -m)),portable)

# Tests read TAPDISK_TESTS: `fast` leaves out what takes minutes, `all` leaves out nothing.
# What was touched since BASE (the last commit); CHECK_ARGS=--all for everything.
CHECK_ARGS ?=

check: linker
	@tests/deps.sh demo test
	@tests/check.py $(CHECK_ARGS)

test: build $(OLD)
	@tests/deps.sh cost deb demo test
	$(CARGO) build --workspace --bins
	TAPDISK_TESTS=all $(CARGO) test --workspace
	tests/bench/cost.py "$(BIN)" --check
	tests/demo.sh "$(BIN)"
	tests/ordinary-user.sh "$(BIN)"
	tests/install.sh $(OLD:%="$(TARGET)/%")
	$(OLD:%=tests/old-system.sh "$(TARGET)/%")
	tests/deb.sh
	tests/vm/lanes.sh './run.sh xen $(XEN_CASES)' './run.sh plain' './run.sh device' './run.sh tapdev' \
	    './run.sh xen-bad $(XEN_BAD_CASES)' 'TAPDISK_VM_LIMIT=1200 ./run.sh faults' './run.sh blktap' \
	    './run.sh crashes'
	tests/vm/pressure.py

# Memory pressure, alone; REPS: each machine so many times; PRESSURE_ARGS: --full, --each, --only, --json (see there).
REPS          ?= 1
PRESSURE_ARGS ?=

test-pressure: build
	@tests/deps.sh test
	tests/vm/pressure.py --reps $(REPS) $(PRESSURE_ARGS)

# Kills and power cuts; `make test` has 40 of each.
CUTS  ?= 1000
KILLS ?= 1000

test-crashes: build
	@tests/deps.sh test
	CUTS=$(CUTS) KILLS=$(KILLS) TAPDISK_VM_LIMIT=$${TAPDISK_VM_LIMIT:-14400} tests/vm/run.sh crashes

# In one boot with two guests. The rest of this list and all of xen-more and xen-bad run in test-vm.
XEN_CASES := two_guests_with_two_disks_each file_system_across_plugs chain_of_five discard_and_flush \
    snapshots_under_guest_io restarted_tapback front_end_that_writes_nonsense hostile_front_end \
    qcow2_of_a_guest \
    killed_tapdisk_and_destroyed_guest
XEN_BAD_CASES := keys_missing_and_malformed frontends_that_jump_states layouts_and_sizes_of_rings

# QEMU's own suite for block devices, as much of it as needs no virtual machine; IOTESTS: some of raw, vhd, chain, vpc,
# and qemu for QEMU's own programs.
IOTESTS ?=

test-iotests: build
	@tests/deps.sh test
	BIN="$(BIN)" tests/iotests/run.sh $(IOTESTS)

# Every case of every machine, and the suite that needs none.
test-vm: build
	@tests/deps.sh test
	tests/vm/module-style.sh
	tests/vm/lanes.sh './run.sh xen' './run.sh xen-more' './run.sh xen-bad' './run.sh plain' './run.sh device' \
	    './run.sh tapdev' './run.sh faults' './run.sh lvm' './run.sh storage' './run.sh blktap' './run.sh crashes'
	BIN="$(BIN)" tests/iotests/run.sh

# LLVM's coverage counters, part of every Rust tool chain: no other tools. The inputs that together take every
# branch that was taken become tests/corpus. Built apart from everything else.
FUZZ_SECONDS ?= 60
FUZZ_ARGS    ?=
COUNTERS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters

fuzz: linker
	host=$$($(CARGO) -vV | sed -n 's/^host: //p') && \
	RUSTFLAGS="$(COUNTERS)" CARGO_TARGET_DIR="$(TARGET)/fuzz" FUZZ_KEEP=1 FUZZ_SECONDS=$(FUZZ_SECONDS) \
	    $(CARGO) test --target "$$host" -p tests --test fuzz -- --nocapture --test-threads=1 $(FUZZ_ARGS)

xen-demo: build
	@tests/deps.sh test
	tests/vm/demo.sh

bench: build
	@tests/deps.sh demo bench
	tests/bench/bench.py --bin "$(BIN)" $(BENCH_ARGS)

# Instructions of a request of 4 KiB, which do not depend on the machine; BENCH_ARGS=--write keeps them.
bench-cost: build
	@tests/deps.sh cost
	tests/bench/cost.py "$(BIN)" $(BENCH_ARGS)

bench-walk:
	@tests/deps.sh cost
	$(CARGO) build --bin request-walk
	tests/bench/walk.py "$(TARGET)/debug"

bench-xen: build
	@tests/deps.sh test
	tests/vm/run.sh xen-bench
	cat "$(TARGET)/vm/xen-bench/bench.txt"

bench-device: build
	@tests/deps.sh test
	tests/vm/run.sh device-bench
	cat "$(TARGET)/vm/device-bench/bench.txt"

bench-vhd: build
	@tests/deps.sh bench
	tests/bench/vhd.py --bin "$(BIN)" $(BENCH_ARGS)

# No dependency on `build`, so that `sudo make install` after `make` runs no compiler as root.
$(PROGRAMS):
	$(MAKE) build

# The files and where they go: packaging/manifest. A tapdisk that was built for measuring without its
# protections, or with the simulator and the bugs that it plants, is not installed.
install: $(PROGRAMS)
	! "$(BIN)/tapdisk" --version | grep -Eq 'UNPROTECTED|canary'
	$(FOLDERS) packaging/files.sh install "$(PARTS)"

# What files.sh says of the manifest: LIST=rpm, LIST=conffiles, LIST=check.
files:
	@$(FOLDERS) packaging/files.sh $(LIST) "$(PARTS)"

# The programs for systems as old as XCP-ng 8.3's dom0 (glibc 2.17), by Zig's linker from PyPI.
portable: linker
	@tests/deps.sh portable
	packaging/portable.sh "$(TARGET)/portable"

# For dom0 of XCP-ng 8.3, XenServer 8 and all that is newer.
rpm: portable
	packaging/rpm.sh --built "$(TARGET)/portable" "$(TARGET)/rpm"

# For Debian, of the release that this is built on and later ones: needs dpkg-dev.
deb: build
	@tests/deps.sh deb
	packaging/deb.sh "$(TARGET)/deb"

# From a source archive with all crates, as a build service does, for its own C library: needs
# rpmbuild.
rpm-source:
	packaging/rpm.sh "$(TARGET)/rpm"

# Where DKMS looks does not move with PREFIX. Then: dkms install blktap/VERSION
VERSION  := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
DKMSDIR  ?= /usr/src/blktap-$(VERSION)

install-dkms:
	install -d "$(DESTDIR)$(DKMSDIR)" "$(DESTDIR)$(MANDIR)/man4"
	cd xen/blktap-dkms && install -m 0644 Kbuild Makefile README.md COPYING *.c *.h "$(DESTDIR)$(DKMSDIR)"
	sed 's/@VERSION@/$(VERSION)/' xen/blktap-dkms/dkms.conf >"$(DESTDIR)$(DKMSDIR)/dkms.conf"
	chmod 0644 "$(DESTDIR)$(DKMSDIR)/dkms.conf"
	install -m 0644 packaging/blktap.4 "$(DESTDIR)$(MANDIR)/man4/blktap.4"

uninstall:
	$(FOLDERS) packaging/files.sh uninstall "$(PARTS)"

clean:
	$(CARGO) clean

.PHONY: all build linker deps demo check test test-vm test-iotests test-pressure fuzz bench bench-cost bench-device bench-walk bench-xen bench-vhd xen-demo portable rpm rpm-source deb files install install-dkms uninstall clean
