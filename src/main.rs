use uncouple::config::{Config, Override};
fn main() {
    let o: Vec<Override> = std::env::args().skip(1).map(|a| Override::parse(&a).unwrap()).collect();
    let c = Config::load(None, &o).unwrap();
    uncouple::train::interrupt::install().unwrap();
    match uncouple::train::train(c, uncouple::train::run_folder::Existing::Overwrite) {
        Ok(out) => println!("{}", uncouple::report::results::table(&out.rows)),
        Err(e) => println!("error: {e}"),
    }
}
