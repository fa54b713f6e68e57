//! What the tests of the whole project share: the simulator, and the rig that drives the real
//! programs.
pub mod fuzz;
pub mod load;
pub mod pressure;
pub mod rig;
pub mod sim;
