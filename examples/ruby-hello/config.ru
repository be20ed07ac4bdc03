# The smallest Ruby application: Puma runs it.
version = ENV.fetch("BEANPOLE_VERSION", "unknown")
run lambda { |_environment|
  [200, { "content-type" => "text/plain" }, ["Hello from Ruby #{RUBY_VERSION}, #{ENV["RACK_ENV"]}, version #{version}\n"]]
}
