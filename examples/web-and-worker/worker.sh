# Does its work every few seconds, and says so in the log: beanpole logs ENVIRONMENT --process worker
trap 'exit 0' TERM
while true; do
  date -u +%H:%M:%S >"${TMPDIR:-/tmp}/last-work"
  echo "worked"
  sleep 5 &
  wait $!
done
