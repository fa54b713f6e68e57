//! What the tests of the whole project share: the simulator.
pub mod sim;
