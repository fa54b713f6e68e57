//! Recorded runs of the original's vhd-util (blktap 4.0.8), replayed against ours: exit code and
//! standard output of every command. Every deliberate difference is in a table, with its reason.
mod player;
mod sections;
