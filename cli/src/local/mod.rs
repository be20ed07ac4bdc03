//! Running Beanpole on this machine: the three daemons as child processes of `up`, and the demo.

pub mod children;
pub mod load;
pub mod lock;
pub mod logfile;
