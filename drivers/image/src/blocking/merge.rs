//! What an image holds itself goes into the one below it.
use std::io;

use super::{Cache, Data, Layer, Writer, fetch, run};
use crate::{Place, Span, bytes_of};

/// Sectors that are copied at once.
const AT_ONCE: u32 = 2048;
/// Pieces of metadata that are kept meanwhile.
const PIECES_MAX: usize = 1024;

/// Writes what `top` holds itself into `base`: data as data, zeros as zeros; of what lies below it
/// nothing. `goes_on` is told the first sector that is not done, and ends it by saying no; then the
/// answer is false.
///
/// ```
/// # use image::{Image, MemStorage, blocking::{Layer, Writer, merge}};
/// # fn disk() -> impl Image { raw_like::Raw }
/// # mod raw_like {
/// #     use image::*;
/// #     pub struct Raw;
/// #     impl Image for Raw {
/// #         fn sectors(&self) -> u64 { 8 }
/// #         fn map(&self, _: &dyn Meta, s: Span) -> Result<Run, Stop> {
/// #             Ok(Run { place: Place::At { byte: s.start * 512 }, count: s.count })
/// #         }
/// #         fn plan(&mut self, _: &mut dyn Meta, s: Span, _: Want) -> Result<Plan, Stop> {
/// #             Ok(Plan::of(Action::Write, s.start * 512, s.count))
/// #         }
/// #         fn landed(&mut self, _: &mut dyn Meta, _: &Plan, _: u8) -> Step { Step::NONE }
/// #         fn finish(&mut self, _: &mut dyn Meta, _: &Plan, _: bool) -> bool { false }
/// #     }
/// # }
/// let file = |byte| MemStorage::new(vec![byte; 4096], false);
/// let (above, below) = (file(7), file(1));
/// let (top, mut base) = (disk(), disk());
/// let mut writer = Writer::new(&mut base, &below)?;
/// assert!(merge(&Layer { image: &top, storage: &above }, &mut writer, &mut |_| true)?);
/// writer.close()?;
/// assert_eq!(below.into_inner(), [7; 4096]);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Those of the files; ERANGE where `base` is smaller.
pub fn merge(
    top: &Layer<'_>,
    base: &mut Writer<'_>,
    goes_on: &mut dyn FnMut(u64) -> bool,
) -> io::Result<bool> {
    let (mut cache, mut buf) = (Cache::default(), vec![0; bytes_of(AT_ONCE)]);
    let (mut at, end) = (0, top.image.sectors());
    while at < end {
        if !goes_on(at) {
            return Ok(false);
        }
        if cache.pieces.len() > PIECES_MAX {
            cache.pieces.clear();
        }
        let left = u32::try_from(end - at).unwrap_or(u32::MAX);
        let run = run(top.image, top.storage, &mut cache, Span { start: at, count: left })?;
        let span = Span { start: at, count: run.count };
        let data = match run.place {
            Place::Below => None,
            Place::Zero => {
                base.zero(span, false, false)?;
                None
            }
            Place::At { byte } => Some((Data::At(byte), span.first(AT_ONCE))),
            Place::Packed(packed) => Some((Data::Packed(packed), span.first(AT_ONCE))),
        };
        at = span.end();
        if let Some((data, span)) = data {
            let buf = &mut buf[..span.bytes()];
            fetch(top.image, top.storage, data, buf)?;
            base.write(span.start, buf)?;
            at = span.end();
        }
    }
    Ok(goes_on(end))
}
