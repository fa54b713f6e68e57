//! Requests, one connection a thread. Everything is done under the world's lock, so packets never
//! mix.

use crate::Shared;
use crate::tree::parent;
use crate::world::{Change, Connection, Transaction, World, send_event};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use xenstore::wire::{Decoder, Kind, PAYLOAD_MAX, Packet};
use xenstore::{Access, Permission};

type Answer = Result<Vec<u8>, &'static str>;

pub(crate) fn listen(path: &Path, domid: u32, shared: Arc<Shared>) {
    let listener = UnixListener::bind(path).expect("a socket");
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let shared = Arc::clone(&shared);
            if shared.lock().over {
                return;
            }
            std::thread::spawn(move || serve(stream, domid, &shared));
        }
    });
}

fn serve(mut stream: UnixStream, domid: u32, shared: &Shared) {
    let Ok(copy) = stream.try_clone() else { return };
    let id = {
        let mut world = shared.lock();
        let id = u64::from(world.number());
        world.accepted += 1;
        world.connections.insert(id, Connection { domid, stream: copy, watches: Vec::new() });
        id
    };
    shared.notify();
    let (mut decoder, mut chunk) = (Decoder::default(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        decoder.feed(&chunk[..count]);
        loop {
            match decoder.next_packet() {
                Ok(Some(packet)) => answer(&mut stream, id, domid, packet, shared),
                Ok(None) => break,
                Err(_) => return shared.lock().forget(id),
            }
        }
    }
    shared.lock().forget(id);
    shared.notify();
}

fn answer(stream: &mut UnixStream, id: u64, domid: u32, packet: Packet, shared: &Shared) {
    shared.wait_while(|world| world.faults.held);
    let mut world = shared.lock();
    world.requests += 1;
    let asked = Asked { id, domid, tx: packet.tx, fields: split(&packet.payload) };
    let kind = Kind::from_number(packet.kind);
    let result = match kind {
        Some(kind) => asked.handle(kind, &mut world),
        None => Err("ENOSYS"),
    };
    let (kind, payload) = match result {
        Ok(payload) => (packet.kind, payload),
        Err(name) => (Kind::Error as u32, [name.as_bytes(), b"\0"].concat()),
    };
    let reply = Packet { kind, id: packet.id, tx: packet.tx, payload };
    // The client may have gone; reading says so next.
    let _ = stream.write_all(&reply.encode());
    if let (Some(Kind::Watch), Ok(path), Ok(token)) =
        (Kind::from_number(packet.kind), asked.text(0), asked.text(1))
        && reply.kind == packet.kind
    {
        send_event(stream, path, token);
    }
    drop(world);
    shared.notify();
}

struct Asked<'a> {
    id: u64,
    domid: u32,
    tx: u32,
    fields: Vec<&'a [u8]>,
}

impl Asked<'_> {
    fn handle(&self, kind: Kind, world: &mut World) -> Answer {
        match kind {
            Kind::Directory | Kind::DirectoryPart => self.directory(kind, world),
            Kind::Read => {
                let path = self.allowed(world, false)?;
                let tree = self.touch(world, &path)?;
                tree.node(&path).map(|node| node.value.clone()).ok_or("ENOENT")
            }
            Kind::Write => {
                let value = self.fields.get(1).copied().unwrap_or_default().to_vec();
                let path = self.allowed(world, true)?;
                self.change(world, Change::Write(path, value))
            }
            Kind::Mkdir => {
                let path = self.allowed(world, true)?;
                self.change(world, Change::Make(path))
            }
            Kind::Rm => {
                let path = self.allowed(world, true)?;
                let tree = self.touch(world, &path)?;
                match (tree.has(&path), tree.has(parent(&path))) {
                    (true, _) => self.change(world, Change::Rm(path)),
                    (false, true) => ok(),
                    (false, false) => Err("ENOENT"),
                }
            }
            Kind::GetPerms => {
                let path = self.allowed(world, false)?;
                let text = self.touch(world, &path)?.permissions_text(&path).ok_or("ENOENT")?;
                Ok([text.replace(' ', "\0").as_bytes(), b"\0"].concat())
            }
            Kind::SetPerms => self.set_permissions(world),
            Kind::Watch | Kind::Unwatch => self.watch(kind, world),
            Kind::TransactionStart => self.start(world),
            Kind::TransactionEnd => self.end(world),
            Kind::GetDomainPath => Ok(format!("/local/domain/{}\0", self.number(0)?).into_bytes()),
            Kind::IsDomainIntroduced => {
                let known = world.introduced.contains(&self.number(0)?);
                Ok(if known { b"T\0".to_vec() } else { b"F\0".to_vec() })
            }
            Kind::WatchEvent | Kind::Error => Err("EINVAL"),
        }
    }

    fn text(&self, field: usize) -> Result<&str, &'static str> {
        let bytes = self.fields.get(field).ok_or("EINVAL")?;
        std::str::from_utf8(bytes).map_err(|_| "EINVAL")
    }

    fn number(&self, field: usize) -> Result<u32, &'static str> {
        self.text(field)?.parse().map_err(|_| "EINVAL")
    }

    fn path(&self) -> Result<String, &'static str> {
        let path = self.text(0)?;
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-/_@".contains(&b);
        if path.is_empty() || !path.bytes().all(good) || path.contains("//") {
            return Err("EINVAL");
        }
        Ok(match path.starts_with(['/', '@']) {
            true => path.to_owned(),
            false => format!("/local/domain/{}/{path}", self.domid),
        })
    }

    fn allowed(&self, world: &World, write: bool) -> Result<String, &'static str> {
        let path = self.path()?;
        let denied = !world.faults.deny.is_empty() && path.ends_with(&world.faults.deny);
        match !denied && world.tree.allows(&path, self.domid, write) {
            true => Ok(path),
            false => Err("EACCES"),
        }
    }

    /// The tree that this request sees, with a note of what it looked at.
    fn touch<'w>(&self, world: &'w mut World, path: &str) -> Result<&'w crate::Tree, &'static str> {
        if self.tx == 0 {
            return Ok(&world.tree);
        }
        let transaction = self.transaction(world)?;
        if !transaction.touched.contains_key(path) {
            let before = transaction.start.node(path).map(|node| node.changed);
            transaction.touched.insert(path.to_owned(), before);
        }
        Ok(&transaction.tree)
    }

    fn transaction<'w>(&self, world: &'w mut World) -> Result<&'w mut Transaction, &'static str> {
        let found = world.transactions.get_mut(&self.tx);
        found.filter(|transaction| transaction.connection == self.id).ok_or("ENOENT")
    }

    fn change(&self, world: &mut World, change: Change) -> Answer {
        let (Change::Write(path, _)
        | Change::Make(path)
        | Change::Rm(path)
        | Change::Permissions(path, _)) = &change;
        let path = path.clone();
        self.touch(world, &path)?;
        let tree = match self.tx {
            0 => &mut world.tree,
            _ => &mut self.transaction(world)?.tree,
        };
        match change.clone() {
            Change::Write(path, value) => tree.write(&path, &value, self.domid),
            Change::Make(path) => tree.make(&path, self.domid),
            Change::Rm(path) => drop(tree.rm(&path)),
            Change::Permissions(path, list) => {
                if !tree.set_permissions(&path, list) {
                    return Err("ENOENT");
                }
            }
        }
        match self.tx {
            0 => world.fire(&path, matches!(change, Change::Rm(_))),
            _ => self.transaction(world)?.changes.push(change),
        }
        ok()
    }

    fn directory(&self, kind: Kind, world: &mut World) -> Answer {
        let path = self.allowed(world, false)?;
        let tree = self.touch(world, &path)?;
        let names = tree.children(&path).ok_or("ENOENT")?;
        let changed = tree.node(&path).map_or(0, |node| node.changed);
        let all: Vec<u8> =
            names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        if kind == Kind::Directory {
            return if all.len() > PAYLOAD_MAX { Err("E2BIG") } else { Ok(all) };
        }
        let offset = self.number(1)? as usize;
        let rest = all.get(offset..).ok_or("EINVAL")?;
        let mut part = format!("{changed}\0").into_bytes();
        let room = PAYLOAD_MAX / 2;
        if rest.len() <= room {
            part.extend_from_slice(rest);
            part.push(0);
        } else {
            let end = rest[..room].iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
            part.extend_from_slice(&rest[..end]);
        }
        Ok(part)
    }

    fn set_permissions(&self, world: &mut World) -> Answer {
        let path = self.allowed(world, true)?;
        let text = self.fields.get(1..).unwrap_or_default();
        let list: Option<Vec<_>> =
            text.iter().filter(|t| !t.is_empty()).map(|t| Permission::parse(t)).collect();
        let list = list.filter(|list| !list.is_empty()).ok_or("EINVAL")?;
        if self.domid != 0 && list[0] != Permission::new(list[0].access, self.domid) {
            return Err("EPERM");
        }
        debug_assert!(
            list.iter().all(|entry| entry.access != Access::Write || entry.domid < 32768)
        );
        self.change(world, Change::Permissions(path, list))
    }

    fn watch(&self, kind: Kind, world: &mut World) -> Answer {
        let (absolute, given) = (self.path()?, self.text(0)?.to_owned());
        let token = self.text(1)?.to_owned();
        let connection = world.connections.get_mut(&self.id).ok_or("EINVAL")?;
        let at = connection.watches.iter().position(|w| w.0 == given && w.2 == token);
        match (kind, at) {
            (Kind::Watch, Some(_)) => Err("EEXIST"),
            (Kind::Watch, None) => {
                connection.watches.push((given, absolute, token));
                ok()
            }
            (_, Some(at)) => {
                connection.watches.remove(at);
                ok()
            }
            (_, None) => Err("ENOENT"),
        }
    }

    fn start(&self, world: &mut World) -> Answer {
        if self.tx != 0 {
            return Err("EBUSY");
        }
        let number = world.number();
        let transaction = Transaction {
            connection: self.id,
            tree: world.tree.clone(),
            start: world.tree.clone(),
            touched: Default::default(),
            changes: Vec::new(),
        };
        world.transactions.insert(number, transaction);
        Ok(format!("{number}\0").into_bytes())
    }

    fn end(&self, world: &mut World) -> Answer {
        self.transaction(world)?;
        let transaction = world.transactions.remove(&self.tx).ok_or("ENOENT")?;
        match self.text(0)? {
            "T" if !world.commit(transaction) => Err("EAGAIN"),
            "T" | "F" => ok(),
            _ => Err("EINVAL"),
        }
    }
}

fn ok() -> Answer {
    Ok(b"OK\0".to_vec())
}

/// NUL-separated; the value of a write has no NUL at its end, and may be empty.
fn split(payload: &[u8]) -> Vec<&[u8]> {
    let mut fields: Vec<&[u8]> = payload.split(|byte| *byte == 0).collect();
    if fields.len() > 1 && payload.ends_with(b"\0") && fields.len() != 2 {
        fields.pop();
    }
    fields
}
