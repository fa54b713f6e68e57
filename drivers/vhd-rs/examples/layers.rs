//! Shows the images of a chain and how much of the disk each of them shows:
//! `cargo run -p vhd-rs --example layers -- leaf.vhd`
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let leaf: PathBuf = std::env::args_os().nth(1).ok_or("which image?")?.into();
    let mut shown: Vec<u64> = Vec::new();
    let mut zeros = 0;
    let layers = vhd_rs::coalesce::map::map(&leaf, false, &mut |range| match range.layer {
        Some(layer) => {
            shown.resize(shown.len().max(layer + 1), 0);
            shown[layer] += range.sectors;
        }
        None => zeros += range.sectors,
    })?;
    shown.resize(layers.len(), 0);
    for (path, sectors) in layers.iter().zip(&shown) {
        println!("{:>16} bytes from {}", sectors * 512, path.display());
    }
    println!("{:>16} bytes of zeros", zeros * 512);
    Ok(())
}
