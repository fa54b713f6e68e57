//! Nothing allocates once the remotes are set.
use std::io::Write;

use request::disk::{Disk, Kind};

use super::support::{DEPTH, each, offer, reply};
use crate::counting;

#[test]
fn requests_answers_and_the_end_do_not_allocate() {
    each(|bench| {
        let mut b = bench(offer());
        let mut answers = Vec::with_capacity(1 << 22);
        counting::calls();
        for round in 0..50 {
            counting::watch(true);
            for tag in 0..DEPTH {
                match tag % 3 {
                    0 => b.push(tag, Kind::Read, 0, 65536),
                    1 => b.push(tag, Kind::Write, 0, 4096),
                    _ => b.push(tag, Kind::Sync, 0, 0),
                }
            }
            b.disk.submit().unwrap();
            counting::watch(false);
            answers.clear();
            for _ in 0..DEPTH {
                let r = b.request();
                answers.extend(reply(r.handle, 0));
                match r.command {
                    0 => answers.resize(answers.len() + 65536, round),
                    1 => drop(b.data(4096)),
                    _ => {}
                }
            }
            let mut far = b.far.try_clone().unwrap();
            let all = std::mem::take(&mut answers);
            let writer = std::thread::spawn(move || {
                far.write_all(&all).unwrap();
                all
            });
            let mut done = 0;
            while done < DEPTH {
                counting::watch(true);
                b.disk.submit().unwrap();
                while b.disk.reap().is_some() {
                    done += 1;
                }
                counting::watch(false);
            }
            answers = writer.join().unwrap();
        }
        (0..DEPTH).for_each(|tag| b.push(tag, Kind::Read, 0, 512));
        b.far.write_all(&[0; 16]).unwrap();
        counting::watch(true);
        b.disk.submit().unwrap();
        let failed = std::iter::from_fn(|| b.disk.reap()).count();
        counting::watch(false);
        assert_eq!((failed, counting::calls()), (DEPTH as usize, 0));
    });
}
