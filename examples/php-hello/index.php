<?php
// The smallest PHP application: php-fpm runs it, and paths that are not there come here, too.
header('Content-Type: text/plain');
echo 'Hello from PHP ', PHP_VERSION, ' at ', $_SERVER['PATH_INFO'] ?? '/', ', memory ', ini_get('memory_limit'),
    ', version ', getenv('BEANPOLE_VERSION'), "\n";
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    echo strlen(file_get_contents('php://input')), " bytes\n";
}
