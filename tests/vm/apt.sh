# Sourced: an apt of our own beside the host's, which knows other releases, or sources. Needs
# neither root nor a change to the host. The sourcing script has `cannot`, which says what is
# missing and ends it.
# shellcheck shell=bash

# The archive that this machine's own apt uses: whoever set it up chose one that can be reached.
# shellcheck disable=SC2016
archive() { # debian | debian-security
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed 's#/*$##' | grep -m1 "/$1\$" || true
}

# Writes an apt's configuration below a folder and makes this process use it: with packages (deb) or
# with sources (deb-src) of a release.
private_apt() { # folder, deb | deb-src, release
    local apt=$1 kind=$2 suite=$3 main security keys=/usr/share/keyrings/debian-archive-keyring.gpg
    main=${TAPDISK_VM_ARCHIVE:-$(archive debian)}
    security=${TAPDISK_VM_SECURITY_ARCHIVE:-$(archive debian-security)}
    [ -n "$main" ] || cannot "apt knows no Debian archive here: set TAPDISK_VM_ARCHIVE to the address of one"
    [ -r "$keys" ] || cannot "$keys is not there: install debian-archive-keyring"
    mkdir -p "$apt"/{lists/partial,archives/partial,etc/{apt.conf.d,preferences.d,sources.list.d,trusted.gpg.d},dpkg}
    # An empty status: what the host has installed does not count.
    : >"$apt/dpkg/status"
    {
        echo "$kind [signed-by=$keys] $main $suite main"
        echo "$kind [signed-by=$keys] $main $suite-updates main"
        [ -z "$security" ] || echo "$kind [signed-by=$keys] $security $suite-security main"
    } >"$apt/etc/sources.list"
    {
        # How to get out (a proxy, say) is the host's knowledge.
        apt-config dump 2>/dev/null | grep -E '^Acquire::(https?|ftp|Retries)' || true
        cat <<CONF
Dir::Etc "$apt/etc";
Dir::Etc::sourcelist "$apt/etc/sources.list";
Dir::Etc::sourceparts "$apt/etc/sources.list.d";
Dir::Etc::parts "$apt/etc/apt.conf.d";
Dir::Etc::trustedparts "$apt/etc/trusted.gpg.d";
Dir::Etc::preferencesparts "$apt/etc/preferences.d";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/dpkg/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Install-Recommends "false";
# apt's own unprivileged user could not write here.
APT::Sandbox::User "root";
Acquire::Languages "none";
# A machine whose clock is off, or an archive that stands still, is no reason to fail.
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
CONF
    } >"$apt/apt.conf"
    export APT_CONFIG=$apt/apt.conf
}
